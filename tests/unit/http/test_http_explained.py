"""Explanations over HTTP: why a task waits, what a score is made of, and what another strategy would have done."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from eventually import eventually
from http_harness import Client
from working_agent import WorkingAgent, registration

from cluster.clock import iso, utc_now
from cluster.routing import router as routing
from cluster.routing.router import Router
from cluster.routing.service import Routing
from cluster.store import Store
from cluster.tasks.delivery import Delivery
from cluster.tasks.explain import Explainer
from cluster.tasks.service import Tasks
from cluster.trust.service import LedgerKeeper, Trust
from cluster.workers.service import Workers
from serve_apps.core import Core

TAG = "sums:v1"


@pytest.fixture
def core(core: Core) -> Core:
    core.trust = Trust(core.store)
    core.tasks, core.workers = Tasks(core.store), Workers(core.store, core.trust)
    core.routing = Routing(core.store, core.trust)
    core.explainer = Explainer(core.store, core.tasks, core.trust)
    return core


@pytest.fixture
async def shop(client: Client, core: Core, admin, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """`await shop(path, body)` as the admin, with an agent, a router and three tasks that have been done."""
    monkeypatch.setattr(routing, "TICK_SECONDS", 0.05)
    store, agent = Store(core.store.url), await WorkingAgent().start()
    delivery = Delivery("http://village", public_only=False)
    running = asyncio.create_task(Router(store, Trust(store), delivery).run())

    async def ask(path: str, body: Any = None, status: int = 200) -> Any:
        answer = await client.request("POST" if body is not None else "GET", path, json=body, headers=admin)
        assert answer.status_code == status, answer.text
        return answer.json()

    await ask("/ains/agents", registration("ada", agent.url, [TAG]), 201)
    for number in range(3):
        made = await ask("/ains/tasks", order(input_data={"n": number}), 201)
        await eventually(lambda task_id=made["task_id"]: completed(ask, task_id))
    keeper = LedgerKeeper(core.store)
    while await keeper.step(wait_seconds=0):
        pass
    yield ask
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await agent.stop()
    await delivery.close()
    await store.close()


async def completed(ask: Any, task_id: str) -> bool:
    return (await ask(f"/ains/tasks/{task_id}"))["status"] == "COMPLETED"


def order(**fields: Any) -> dict[str, Any]:
    return {"client_id": "shop", "task_type": "sum", "capability_required": TAG, "input_data": {}} | fields


async def test_why_a_task_waits(shop, client: Client, user):
    waiting = (await shop("/ains/tasks", order(capability_required="rare:v1"), 201))["task_id"]
    said = await shop(f"/ains/tasks/{waiting}/why")
    assert said["status"] == "PENDING" and said["age_seconds"] >= 0 and said["task_id"] == waiting
    [blocker] = said["blockers"]
    assert blocker["kind"] == "capability" and blocker["details"] == {"capability": "rare:v1"}
    assert blocker["unblocks"] == "an agent registers with it"
    assert (await shop("/ains/tasks/task_none/why", status=404))["error"]["code"] == "TASK_NOT_FOUND"
    answer = await client.get(f"/ains/tasks/{waiting}/why", headers=await user())
    assert answer.status_code == 404


async def test_a_score_is_explained_and_its_sum_is_the_score(shop):
    said = await shop("/ains/agents/ada/trust/explain?limit=2")
    assert said["sum_agrees"] and said["chain"]["verified"] and said["chain"]["records_checked"] == 3
    assert said["counts"] == {"task_completed": 3} and said["total_records"] == 3
    assert [record["number"] for record in said["records"]] == [3, 2] and said["other_records"]["count"] == 1
    good = sum(record["good"] for record in said["records"]) + said["other_records"]["good"]
    assert good == pytest.approx(said["evidence"]["good"]) == pytest.approx(4.5, abs=1e-4)
    prior, evidence = said["prior"], said["evidence"]
    whole = prior["good"] + prior["bad"] + evidence["good"] + evidence["bad"]
    assert said["trust_score"] == pytest.approx((prior["good"] + evidence["good"]) / whole, abs=1e-9)
    assert said["strongest"][0]["moves_score_by"] > 0
    history = await shop("/ains/agents/ada/trust/history")
    assert said["chain"]["head"] == history["records"][0]["hash"]
    later = await shop(f"/ains/agents/ada/trust/explain?as_of={iso(utc_now() + timedelta(days=30))}")
    assert later["evidence"]["good"] == pytest.approx(2.25, abs=1e-3) and later["sum_agrees"]
    before = await shop("/ains/agents/ada/trust/explain?as_of=2020-01-01T00:00:00Z")
    assert before["trust_score"] == 0.5 and before["records"] == [] and before["sum_agrees"]
    assert (await shop("/ains/agents/nobody/trust/explain", status=404))["error"]["code"] == "AGENT_NOT_FOUND"
    assert (await shop("/ains/agents/ada/trust/explain?limit=0", status=400))["error"]["code"] == "INVALID_FIELD_VALUE"


async def test_a_window_is_replayed(shop):
    said = await shop("/ains/routing/simulate", {"window": {"last_seconds": 60}, "strategies": ["round_robin"]})
    assert said["sample"]["tasks"] == 3 and said["observed"]["completed"] == 3 and said["message"] is None
    assert said["strategies"]["round_robin"]["agents"]["ada"]["completed"] == 3
    assert {"p50", "p95", "p99"} == said["strategies"]["round_robin"]["latency_seconds"].keys()
    all_of_them = await shop("/ains/routing/simulate", {"window": {"last_seconds": 60}})
    assert set(all_of_them["strategies"]) == {
        "as_submitted", "round_robin", "least_loaded", "trust_weighted", "fastest_response"
    }  # fmt: skip
    changed = {
        "window": {"last_seconds": 60},
        "agents": {"ada": {"max_concurrent_tasks": 5}},
        "routing_strategy": "least_loaded",
    }
    said = await shop("/ains/routing/simulate", changed)
    assert list(said["strategies"]) == ["least_loaded"] and said["changed_agents"] == changed["agents"]
    past = {"window": {"start": "2020-01-01T00:00:00", "end": "2020-01-02T00:00:00Z"}}
    said = await shop("/ains/routing/simulate", past)
    assert said["sample"]["tasks"] == 0 and said["message"] == "no tasks: none was submitted in the window"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"window": {}}, "INVALID_FIELD_VALUE"),
        ({"window": {"last_seconds": 60, "start": "2020-01-01T00:00:00Z"}}, "INVALID_FIELD_VALUE"),
        ({"window": {"start": "yesterday"}}, "INVALID_FIELD_VALUE"),
        ({"window": {"start": "2020-01-02T00:00:00Z", "end": "2020-01-01T00:00:00Z"}}, "INVALID_FIELD_VALUE"),
        ({"window": {"last_seconds": 60}, "limit": 10_001}, "INVALID_FIELD_VALUE"),
        ({"window": {"last_seconds": 60}, "strategies": ["best"]}, "INVALID_ROUTING_STRATEGY"),
        ({"window": {"last_seconds": 60}, "agents": {"ada": {"trust": 1}}}, "INVALID_FIELD_VALUE"),
        ({"window": {"last_seconds": 60}, "agents": {"nobody": {}}}, "INVALID_FIELD_VALUE"),
    ],
)  # fmt: skip
async def test_a_question_that_means_nothing_is_refused(shop, body: dict[str, Any], code: str):
    said = await shop("/ains/routing/simulate", body, status=400)
    assert said["error"]["code"] == code
