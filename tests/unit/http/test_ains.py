"""DukeNet AINS from the first key to the last trust record: in process, with a real router and a real agent."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from contract.shapes import mismatches
from eventually import eventually
from http_harness import Client
from working_agent import Work, WorkingAgent, accept, complete, fail, forget, registration

from cluster.routing import router as routing
from cluster.routing.router import Router
from cluster.routing.service import Routing
from cluster.store import Store
from cluster.tasks.delivery import Delivery
from cluster.tasks.service import Tasks
from cluster.trust.service import LedgerKeeper, Trust
from cluster.workers.service import Workers
from serve_apps.core import Core

EXAMPLES = json.loads((Path(__file__).parents[2] / "contract" / "examples.json").read_text())
TAG = "sums:v1"


@pytest.fixture
def core(core: Core) -> Core:
    core.trust = Trust(core.store)
    core.tasks, core.workers = Tasks(core.store), Workers(core.store, core.trust)
    core.routing = Routing(core.store, core.trust)
    return core


class Program:
    """A client's program with a key of its own, and the agents that it brings."""

    def __init__(self, client: Client, stack: AsyncExitStack) -> None:
        self.client, self.stack, self.headers = client, stack, {}

    async def ask(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return await self.client.request(method, path, json=body, headers=self.headers, **options)

    async def agent(self, name: str, work: Work = complete, **metadata: Any) -> WorkingAgent:
        agent = await WorkingAgent(work).start()
        self.stack.push_async_callback(agent.stop)
        answer = await self.ask("POST", "/ains/agents", registration(name, agent.url, [TAG], **metadata))
        assert answer.status_code == 201, answer.text
        return agent

    async def submit(self, **fields: Any) -> str:
        answer = await self.ask("POST", "/ains/tasks", order(**fields))
        assert answer.status_code == 201, answer.text
        return answer.json()["task_id"]

    async def task(self, task_id: str) -> dict[str, Any]:
        answer = await self.ask("GET", f"/ains/tasks/{task_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def reaches(self, task_id: str, state: str) -> dict[str, Any]:
        async def probe() -> dict[str, Any] | None:
            task = await self.task(task_id)
            return task if task["status"] == state else None

        return await eventually(probe)


def order(**fields: Any) -> dict[str, Any]:
    task = {"client_id": "shop", "task_type": "sum", "capability_required": TAG, "input_data": {"a": 1}}
    return task | fields


def unlike(key: str, answer: httpx.Response) -> list[str]:
    spec = EXAMPLES[key]
    if answer.status_code != spec["status"]:
        return [f"{key}: {answer.status_code} {answer.text[:200]}"]
    return [f"{key}: {found}" for found in mismatches(spec["response"], answer.json())]


@pytest.fixture
async def shop(client: Client, core: Core, admin, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Program]:
    """A program with every scope that its client needs, a router, and a keeper of the ledger."""
    monkeypatch.setattr(routing, "TICK_SECONDS", 0.05)
    monkeypatch.setattr("cluster.tasks.machine.backoff_seconds", lambda retries, jitter: 0.02)
    stores = [Store(core.store.url), Store(core.store.url)]
    delivery = Delivery("http://village", public_only=False)
    keeper = LedgerKeeper(stores[1])

    async def keep() -> None:
        while True:
            await keeper.step(wait_seconds=1)

    running = [asyncio.create_task(Router(stores[0], Trust(stores[0]), delivery).run()), asyncio.create_task(keep())]
    async with AsyncExitStack() as stack:
        program = Program(client, stack)
        body = {"client_id": "shop", "name": "shop", "scopes": ["read", "write", "admin"]}
        body |= {"rate_limit_per_minute": 100_000, "rate_limit_per_hour": 100_000}  # a probe asks often
        made = await client.post("/ains/api-keys", json=body, headers=admin)
        assert not unlike("ains POST /ains/api-keys", made)
        program.headers = {"X-API-Key": made.json()["api_key"]}
        yield program
        for task in running:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    await delivery.close()
    for store in stores:
        await store.close()


async def test_every_built_endpoint_answers_in_the_shape_of_its_example(shop: Program):
    wrong: list[str] = []

    async def ask(key: str, body: Any = None, **parts: str) -> Any:
        method, path = EXAMPLES[key]["method"], EXAMPLES[key]["path"].format(**parts)
        answer = await shop.ask(method, path, body)
        wrong.extend(unlike(key, answer))
        return answer.json()

    agent = await WorkingAgent().start()
    shop.stack.push_async_callback(agent.stop)
    await ask("ains POST /ains/agents", registration("ada", agent.url, [TAG], max_concurrent_tasks=10, region="eu"))
    first = (await ask("ains POST /ains/tasks", order()))["task_id"]
    done = await shop.reaches(first, "COMPLETED")
    assert done["result_data"] == {"echo": {"a": 1}} and done["assigned_agent_id"] == "ada" and done["attempt"] == 1
    await ask("ains GET /ains/tasks/{task_id}", task_id=first)
    batch = await ask("ains POST /ains/tasks/batch", {"tasks": [order(input_data={"n": n}) for n in range(5)]})
    for task_id in batch["task_ids"]:
        await shop.reaches(task_id, "COMPLETED")
    waiting = await shop.submit(capability_required="nobody:v1")
    behind = await shop.submit(depends_on=[waiting])
    await ask("ains GET /ains/tasks/{task_id}/dependencies", task_id=behind)
    await ask("ains PATCH /ains/tasks/{task_id}/priority", {"priority": 9}, task_id=waiting)
    await ask("ains POST /ains/tasks/{task_id}/cancel", {"reason": "enough"}, task_id=waiting)
    assert (await shop.reaches(behind, "FAILED"))["reason"] == f"dependency {waiting} is CANCELLED"
    listed = await ask("ains GET /ains/tasks")
    assert listed["pagination"]["total"] == 8 and not listed["pagination"]["has_more"]

    async def counted() -> bool:
        return (await shop.ask("GET", "/ains/agents/ada")).json()["total_tasks_completed"] == 6

    await eventually(counted)
    await ask("ains GET /ains/agents")
    await ask("ains GET /ains/agents/{agent_id}", agent_id="ada")
    board = await ask("ains GET /ains/agents/leaderboard")
    assert [row["agent_id"] for row in board["leaderboard"]] == ["ada"]
    await ask("ains GET /ains/agents/{agent_id}/trust", agent_id="ada")
    history = await ask("ains GET /ains/agents/{agent_id}/trust/history", agent_id="ada")
    assert history["total_records"] == 6 and history["records"][-1]["previous_hash"] == "0" * 64
    await ask("ains POST /ains/agents/{agent_id}/trust/adjust", {"delta": 0.1, "reason": "good"}, agent_id="ada")
    await ask("ains POST /ains/routing/test", {"capability_required": TAG, "routing_strategy": "least_loaded"})
    keys = await ask("ains GET /ains/api-keys")
    await ask("ains DELETE /ains/api-keys/{key_id}", key_id=keys["keys"][0]["key_id"])
    assert not wrong, "\n".join(wrong)
    assert (await shop.ask("GET", "/ains/tasks")).status_code == 401


async def test_a_failing_task_is_retried_and_costs_trust(shop: Program):
    agent = await shop.agent("ada", fail)
    task_id = await shop.submit(max_retries=1)
    done = await shop.reaches(task_id, "FAILED")
    assert done["retry_count"] == 1 and done["error"] == "asked to fail" and agent.times(task_id) == 2

    async def trust() -> dict[str, Any] | None:
        found = (await shop.ask("GET", "/ains/agents/ada/trust")).json()
        return found if found["total_tasks_failed"] == 2 else None

    found = await eventually(trust)
    assert found["trust_score"] == pytest.approx(12.5 / 30, abs=1e-4) and found["trust_level"] == "low"


async def test_a_task_past_its_time_is_a_timeout(shop: Program):
    await shop.agent("ada", forget)
    done = await shop.reaches(await shop.submit(timeout_seconds=1, max_retries=0), "TIMEOUT")
    assert done["execution_time_seconds"] == pytest.approx(1, abs=0.5)


async def test_an_agent_that_accepted_reports_by_its_token_and_no_other_credential(shop: Program, client: Client):
    agent = await shop.agent("ada", accept)
    task_id = await shop.submit()

    async def accepted() -> bool:
        return bool(agent.tasks) and (await shop.task(task_id))["status"] == "RUNNING"

    await eventually(accepted)
    [sent] = agent.tasks
    assert sent["callback_url"] == f"http://village/ains/tasks/{task_id}/result"
    body = {"status": "COMPLETED", "result_data": {"sum": 3}}
    for headers in ({}, {"X-Task-Token": "guess"}, shop.headers):
        refused = await client.post(f"/ains/tasks/{task_id}/result", json=body, headers=headers)
        assert refused.status_code == 401, refused.text
    token = {"X-Task-Token": sent["task_token"]}
    done = await client.post(sent["callback_url"], json=body, headers=token)
    assert done.status_code == 200 and done.json()["status"] == "COMPLETED"
    late = await client.post(sent["callback_url"], json=body | {"result_data": "late"}, headers=token)
    assert late.status_code == 409 and (await shop.task(task_id))["result_data"] == {"sum": 3}
    assert "task_token" not in (await shop.task(task_id))


async def test_the_same_routing_question_changes_nothing(shop: Program):
    await shop.agent("ada")
    await shop.agent("bob")
    body = {"capability_required": TAG, "routing_strategy": "round_robin"}
    answers = [(await shop.ask("POST", "/ains/routing/test", body)).json() for _ in range(3)]
    assert len({answer["selected_agent"]["agent_id"] for answer in answers}) == 1
    assert answers[0]["alternatives_considered"] == 1
    nobody = await shop.ask("POST", "/ains/routing/test", body | {"capability_required": "none:v1"})
    assert (nobody.status_code, nobody.json()["error"]["code"]) == (503, "INSUFFICIENT_CAPACITY")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"priority": 11}, "INVALID_PRIORITY"), ({"priority": 0}, "INVALID_PRIORITY"),
        ({"timeout_seconds": 0}, "INVALID_TIMEOUT"), ({"timeout_seconds": 3601}, "INVALID_TIMEOUT"),
        ({"max_retries": 11}, "MAX_RETRIES_EXCEEDED"), ({"max_retries": -1}, "INVALID_FIELD_VALUE"),
        ({"routing_strategy": "astrology"}, "INVALID_ROUTING_STRATEGY"),
        ({"depends_on": ["task_none"]}, "DEPENDENCY_NOT_FOUND"), ({"task_type": ""}, "INVALID_FIELD_VALUE"),
        ({"input_data": [1]}, "INVALID_FIELD_VALUE"), ({"client_id": None}, "INVALID_FIELD_VALUE"),
    ],
)  # fmt: skip
async def test_a_task_that_breaks_a_rule_is_refused_with_its_code(client: Client, admin, core, fields, code):
    answer = await client.post("/ains/tasks", json=order(**fields), headers=admin)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), answer.text


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "INVALID_REQUEST"), (b"", "MISSING_REQUIRED_FIELD"),
        (b'{"client_id": "shop", "task_type": "t", "capability_required": "x"}', "MISSING_REQUIRED_FIELD"),
        (
            b'{"client_id": "shop", "task_type": "t", "capability_required": "x", "input_data": {"a": "\\ud800"}}',
            "INVALID_REQUEST",
        ),
    ],
)  # fmt: skip
async def test_a_body_that_cannot_be_read_is_a_400(client: Client, admin, core, body, code):
    headers = admin | {"Content-Type": "application/json"}
    answer = await client.post("/ains/tasks", content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] in (code, "INVALID_REQUEST")


async def test_tasks_of_others_do_not_exist(client: Client, admin, core, user):
    ann, ben = await user("ann"), await user("ben")
    task_id = (await client.post("/ains/tasks", json=order(), headers=ann)).json()["task_id"]
    assert (await client.get(f"/ains/tasks/{task_id}", headers=admin)).status_code == 200
    for method, path, body in (
        ("GET", "", None), ("POST", "/cancel", {"reason": ""}), ("PATCH", "/priority", {"priority": 1}),
        ("GET", "/dependencies", None),
    ):  # fmt: skip
        answer = await client.request(method, f"/ains/tasks/{task_id}{path}", json=body, headers=ben)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "TASK_NOT_FOUND")
    assert (await client.get("/ains/tasks", headers=ben)).json()["pagination"]["total"] == 0
    late = await client.post("/ains/tasks", json=order(depends_on=[task_id]), headers=ben)
    assert late.json()["error"]["code"] == "DEPENDENCY_NOT_FOUND"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"signature": "AAAA"}, 400), ({"signature": "no base64!"}, 400), ({"display_name": "Eve"}, 400),
        ({"public_key": "no key"}, 400), ({"endpoint": "http://[::1"}, 400), ({"agent_id": "leaderboard"}, 400),
        ({"agent_id": "a/b"}, 400), ({"tags": []}, 400), ({"tags": ["noversion"]}, 400),
        ({"metadata": {"max_concurrent_tasks": 0}}, 400),
    ],
)  # fmt: skip
async def test_a_registration_that_is_not_right_is_refused(client: Client, admin, core, change, code):
    body = registration("ada", "http://127.0.0.1:1/x", [TAG]) | change
    answer = await client.post("/ains/agents", json=body, headers=admin)
    assert answer.status_code == code, answer.text
    assert (await client.get("/ains/agents", headers=admin)).json()["total"] == 0


async def test_an_agents_name_is_taken_once(client: Client, admin, core):
    body = registration("ada", "http://127.0.0.1:1/x", [TAG])
    assert (await client.post("/ains/agents", json=body, headers=admin)).status_code == 201
    again = await client.post("/ains/agents", json=body, headers=admin)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "AGENT_ALREADY_EXISTS")


@pytest.mark.parametrize(
    ("scopes", "method", "path", "allowed"),
    [
        (["tasks:read"], "GET", "/ains/tasks", True), (["tasks:read"], "POST", "/ains/tasks", False),
        (["tasks:write"], "GET", "/ains/tasks", False), (["agents:read"], "GET", "/ains/agents", True),
        (["agents:read"], "POST", "/ains/agents", False), (["agents:write"], "GET", "/ains/agents", False),
        (["agents:write"], "POST", "/ains/agents/ada/trust/adjust", False),
        (["read", "write"], "POST", "/ains/agents/ada/trust/adjust", False),
        (["read"], "GET", "/ains/api-keys", False), (["keys:manage"], "GET", "/ains/api-keys", True),
    ],
)  # fmt: skip
async def test_a_key_may_do_what_its_scopes_say(client: Client, admin, core, scopes, method, path, allowed):
    made = await client.post("/ains/api-keys", json={"client_id": "shop", "name": "k", "scopes": scopes}, headers=admin)
    answer = await client.request(
        method, path, json={} if method == "POST" else None, headers={"X-API-Key": made.json()["api_key"]}
    )
    if allowed:
        assert answer.status_code == 200
    else:
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "INSUFFICIENT_PERMISSIONS"), answer.text


async def test_a_list_is_paged_and_filtered(client: Client, admin, core):
    await client.post(
        "/ains/tasks/batch", json={"tasks": [order(input_data={"n": n}) for n in range(7)]}, headers=admin
    )
    seen, offset = [], 0
    while offset is not None:
        page = (await client.get("/ains/tasks", params={"limit": 3, "offset": offset}, headers=admin)).json()
        seen += [task["input_data"]["n"] for task in page["results"]]
        offset = page["pagination"]["next_offset"]
    assert sorted(seen) == list(range(7))
    done = await client.get("/ains/tasks", params={"status": "COMPLETED"}, headers=admin)
    assert done.json()["pagination"]["total"] == 0
    for bad in ({"limit": 0}, {"limit": 101}, {"offset": -1}, {"status": "DONE"}):
        assert (await client.get("/ains/tasks", params=bad, headers=admin)).status_code == 400


async def test_an_adjustment_needs_an_agent_and_a_range(client: Client, admin, core):
    unknown = await client.post("/ains/agents/none/trust/adjust", json={"delta": 0.1, "reason": "x"}, headers=admin)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "AGENT_NOT_FOUND")
    await client.post("/ains/agents", json=registration("ada", "http://127.0.0.1:1/x", [TAG]), headers=admin)
    far = await client.post("/ains/agents/ada/trust/adjust", json={"delta": 0.6, "reason": "x"}, headers=admin)
    assert far.status_code == 400 and far.json()["error"]["details"]["allowed_range"] == [-0.5, 0.5]
    down = await client.post("/ains/agents/ada/trust/adjust", json={"delta": -0.5, "reason": "x"}, headers=admin)
    assert down.json()["trust_score_after"] == pytest.approx(0)
