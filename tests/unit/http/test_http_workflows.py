"""Chains, schedules and templates over HTTP: the documents' shapes, bad input by field, and whose is whose."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime

import pytest
from eventually import eventually
from http_harness import Client
from test_contract import EXAMPLES, unlike
from working_agent import WorkingAgent, complete, registration

from cluster.events.keeping import keep
from cluster.routing import router as routing
from cluster.routing.router import Router
from cluster.store import Store
from cluster.tasks.delivery import Delivery
from cluster.tasks.model import Task
from cluster.tasks.service import Tasks
from cluster.trust.service import Trust
from cluster.workers.service import Workers
from cluster.workflows.chains.runner import ChainRunner
from cluster.workflows.chains.service import Chains
from cluster.workflows.schedules.service import Schedules
from cluster.workflows.templates.service import Templates
from serve_apps.core import Core

CHAINS, SCHEDULES, TEMPLATES = "/ains/task-chains", "/ains/scheduled-tasks", "/ains/task-templates"
FROM = "/ains/tasks/from-template"
CHAIN = EXAMPLES["ains POST /ains/task-chains"]["request"]
SCHEDULE = EXAMPLES["ains POST /ains/scheduled-tasks"]["request"]
TEMPLATE = EXAMPLES["ains POST /ains/task-templates"]["request"]


@pytest.fixture
def core(core: Core) -> Core:
    core.trust = Trust(core.store)
    core.tasks, core.workers = Tasks(core.store), Workers(core.store, core.trust)
    core.chains, core.schedules = Chains(core.store, core.tasks), Schedules(core.store, core.tasks)
    core.templates = Templates(core.store, core.tasks)
    return core


@pytest.fixture
async def working(core: Core, client: Client, admin, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WorkingAgent]:
    """An agent for every step of the document's chain, a router, and a runner of chains."""
    monkeypatch.setattr(routing, "TICK_SECONDS", 0.05)
    stores = [Store(core.store.url) for _ in range(2)]
    delivery, agent = Delivery("http://village", public_only=False), await WorkingAgent(complete).start()
    tags = [step["capability_required"] for step in CHAIN["steps"]]
    made = await client.post("/ains/agents", json=registration("ada", agent.url, tags), headers=admin)
    assert made.status_code == 201, made.text
    running = [
        asyncio.create_task(Router(stores[0], Trust(stores[0]), delivery).run()),
        asyncio.create_task(keep(ChainRunner(stores[1], Tasks(stores[1])))),
    ]
    yield agent
    for task in running:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await agent.stop()
    await delivery.close()
    for store in stores:
        await store.close()


@pytest.fixture
async def shop(client: Client, admin, core: Core) -> dict[str, str]:
    """Headers of a program of the client `shop`."""
    body = {"client_id": "shop", "name": "shop", "scopes": ["read", "write"]}
    made = await client.post("/ains/api-keys", json=body, headers=admin)
    return {"X-API-Key": made.json()["api_key"]}


async def test_a_chain_has_the_shape_of_the_document_from_beginning_to_end(client: Client, admin, working):
    made = await client.post(CHAINS, json=CHAIN, headers=admin)
    assert not unlike("ains POST /ains/task-chains", made)
    assert made.json()["estimated_completion"] is None and made.json()["current_step"] == 0
    one = f"{CHAINS}/{made.json()['chain_id']}"

    async def finished() -> dict | None:
        answer = await client.get(one, headers=admin)
        assert not unlike("ains GET /ains/task-chains/{chain_id}", answer)
        return answer.json() if answer.json()["status"] == "COMPLETED" else None

    chain = await eventually(finished)
    assert chain["progress_percentage"] == 100.0 and [s["status"] for s in chain["steps"]] == ["COMPLETED"] * 3
    results = [chain["step_results"][str(n)]["data"]["echo"] for n in range(3)]
    assert results[0] == CHAIN["steps"][0]["input_data"] and results[1]["previous_output"] == {"echo": results[0]}
    assert results[2] == {"destination": "data_warehouse", "previous_output": {"echo": results[1]}}
    assert chain["created_at"] <= chain["started_at"] <= chain["completed_at"]
    again = (await client.post(CHAINS, json=CHAIN, headers=admin)).json()
    assert again["estimated_completion"] > again["created_at"]
    for query, count in (("status=COMPLETED", 1), ("client_id=production_application", 2), ("client_id=nobody", 0)):
        await eventually(lambda q=query, n=count: _total(client, f"{CHAINS}?{q}", admin, n))
    assert (await client.delete(one, headers=admin)).json()["chain_id"] == chain["chain_id"]
    gone = await client.get(one, headers=admin)
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "CHAIN_NOT_FOUND")


async def _total(client: Client, path: str, headers, at_least: int) -> bool:
    listed = (await client.get(path, headers=headers)).json()
    assert listed["pagination"].keys() == {"total", "limit", "offset", "has_more", "next_offset"}
    return listed["pagination"]["total"] >= at_least


async def test_a_chain_is_cancelled_and_tried_again(client: Client, admin):
    made = (await client.post(CHAINS, json=CHAIN, headers=admin)).json()
    one = f"{CHAINS}/{made['chain_id']}"
    kept = await client.delete(one, headers=admin)
    assert (kept.status_code, kept.json()["error"]["code"]) == (409, "INVALID_REQUEST")
    waiting = (await client.get(one, headers=admin)).json()
    assert [(s["status"], s["task_id"] is None) for s in waiting["steps"]] == [
        ("PENDING", False), ("PENDING", True), ("PENDING", True)
    ]  # fmt: skip
    stopped = await client.post(f"{one}/cancel", json={"reason": "enough"}, headers=admin)
    assert stopped.status_code == 200 and stopped.json()["status"] == "CANCELLED"
    again = await client.post(f"{one}/cancel", headers=admin)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "TASK_NOT_CANCELLABLE")
    shown = (await client.get(one, headers=admin)).json()
    assert (shown["reason"], shown["steps"][0]["status"], shown["progress_percentage"]) == ("enough", "CANCELLED", 0.0)
    retried = await client.post(f"{one}/retry", headers=admin)
    assert (retried.json()["status"], retried.json()["retries"]) == ("RUNNING", 1)
    assert (await client.post(f"{one}/retry", headers=admin)).status_code == 409


async def test_a_schedule_has_the_shape_of_the_document(client: Client, admin):
    made = await client.post(SCHEDULES, json=SCHEDULE, headers=admin)
    assert not unlike("ains POST /ains/scheduled-tasks", made)
    schedule = made.json()
    upcoming = datetime.fromisoformat(schedule["next_run_at"])
    assert (upcoming.hour, upcoming.minute) == (2, 0) and schedule["next_run_at"][-6:] in ("-05:00", "-04:00")
    one = f"{SCHEDULES}/{schedule['schedule_id']}"
    assert (await client.get(one, headers=admin)).json() == schedule
    listed = (await client.get(f"{SCHEDULES}?active=true", headers=admin)).json()
    assert (
        listed["results"] == [schedule]
        and not (await client.get(f"{SCHEDULES}?active=0", headers=admin)).json()["results"]
    )
    paused = (await client.post(f"{one}/pause", headers=admin)).json()
    assert (paused["active"], paused["next_run_at"]) == (False, None)
    changed = await client.patch(one, json={"cron_expression": "0 2 * * SUN", "active": True}, headers=admin)
    assert datetime.fromisoformat(changed.json()["next_run_at"]).weekday() == 6
    assert (await client.post(f"{one}/resume", headers=admin)).json()["active"]
    ran = await client.post(f"{one}/run-now", headers=admin)
    assert ran.status_code == 201 and ran.json()["status"] == "PENDING" and ran.json()["priority"] == 7
    overlapping = await client.post(f"{one}/run-now", headers=admin)
    assert (overlapping.status_code, overlapping.json()["error"]["details"]["task_id"]) == (409, ran.json()["task_id"])
    runs = (await client.get(f"{one}/runs?outcome=fired", headers=admin)).json()
    assert [(r["task_id"], r["outcome"], r["scheduled_for"]) for r in runs["results"]] == [
        (ran.json()["task_id"], "fired", None)
    ]  # fmt: skip
    assert (await client.delete(one, headers=admin)).status_code == 200
    gone = await client.get(one, headers=admin)
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "SCHEDULE_NOT_FOUND")


async def test_a_template_has_the_shape_of_the_document_and_makes_tasks(client: Client, admin):
    made = await client.post(TEMPLATES, json=TEMPLATE, headers=admin)
    assert not unlike("ains POST /ains/task-templates", made) and made.json()["times_used"] == 0
    template_id = made.json()["template_id"]
    body = EXAMPLES["ains POST /ains/tasks/from-template"]["request"] | {"template_id": template_id}
    task = await client.post(FROM, json=body, headers=admin)
    assert not unlike("ains POST /ains/tasks/from-template", task) and task.status_code == 201
    full = (await client.get(f"/ains/tasks/{task.json()['task_id']}", headers=admin)).json()
    assert (full["priority"], full["timeout_seconds"], full["max_retries"]) == (8, 7200, 3)
    assert full["input_data"] == {
        "algorithm": "random_forest", "validation_split": 0.2,
        "hyperparameters": {"n_estimators": 200, "max_depth": 10, "random_state": 42},
        "training_data_url": "https://storage.example.com/datasets/train.csv",
    }  # fmt: skip
    one = f"{TEMPLATES}/{template_id}"
    shown = (await client.get(one, headers=admin)).json()
    assert shown["times_used"] == 1 and shown["last_used_at"] >= shown["created_at"]
    changed = (await client.patch(one, json={"default_timeout": 86_400, "name": "New"}, headers=admin)).json()
    assert (changed["default_timeout"], changed["name"], changed["default_priority"]) == (86_400, "New", 6)
    assert (await client.get(TEMPLATES, headers=admin)).json()["results"] == [changed]
    assert (await client.delete(one, headers=admin)).status_code == 200
    for gone in (await client.get(one, headers=admin), await client.post(FROM, json=body, headers=admin)):
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "TEMPLATE_NOT_FOUND")
    assert (await client.get(FROM, headers=admin)).json()["error"]["code"] == "TASK_NOT_FOUND"


STEP = CHAIN["steps"][0]


@pytest.mark.parametrize(
    ("path", "body", "code", "field"),
    [
        (CHAINS, CHAIN | {"steps": []}, "INVALID_FIELD_VALUE", "steps"),
        (CHAINS, CHAIN | {"steps": [STEP] * 101}, "INVALID_FIELD_VALUE", "steps"),
        (CHAINS, CHAIN | {"steps": [{"name": "x"}]}, "MISSING_REQUIRED_FIELD", "steps.0.task_type"),
        (CHAINS, CHAIN | {"steps": [STEP | {"use_previous_output": True}]}, "INVALID_FIELD_VALUE",
         "steps.0.use_previous_output"),
        (CHAINS, CHAIN | {"steps": [STEP | {"priority": 11}]}, "INVALID_PRIORITY", "steps.0.priority"),
        (CHAINS, CHAIN | {"steps": [STEP | {"timeout_seconds": 3601}]}, "INVALID_TIMEOUT", "steps.0.timeout_seconds"),
        (CHAINS, CHAIN | {"steps": [STEP | {"routing_strategy": "by_dice"}]}, "INVALID_ROUTING_STRATEGY", None),
        (CHAINS, CHAIN | {"name": ""}, "INVALID_FIELD_VALUE", "name"),
        (SCHEDULES, SCHEDULE | {"cron_expression": "0 2 * *"}, "INVALID_CRON_EXPRESSION", "cron_expression"),
        (SCHEDULES, SCHEDULE | {"cron_expression": "0 0 0 2 * *"}, "INVALID_CRON_EXPRESSION", "cron_expression"),
        (SCHEDULES, SCHEDULE | {"cron_expression": "0 0 30 2 *"}, "INVALID_CRON_EXPRESSION", "cron_expression"),
        (SCHEDULES, SCHEDULE | {"cron_expression": "x" * 300}, "INVALID_CRON_EXPRESSION", "cron_expression"),
        (SCHEDULES, SCHEDULE | {"timezone": "Mars/Olympus"}, "INVALID_CRON_EXPRESSION", "timezone"),
        (SCHEDULES, SCHEDULE | {"timeout_seconds": 0}, "INVALID_TIMEOUT", "timeout_seconds"),
        (SCHEDULES, SCHEDULE | {"routing_strategy": "by_dice"}, "INVALID_ROUTING_STRATEGY", None),
        (TEMPLATES, TEMPLATE | {"default_priority": 0}, "INVALID_PRIORITY", "default_priority"),
        (TEMPLATES, TEMPLATE | {"default_timeout": 86_401}, "INVALID_TIMEOUT", "default_timeout"),
        (TEMPLATES, TEMPLATE | {"default_max_retries": 11}, "MAX_RETRIES_EXCEEDED", "default_max_retries"),
        (TEMPLATES, TEMPLATE | {"default_routing_strategy": "by_dice"}, "INVALID_ROUTING_STRATEGY", None),
        (FROM, {"input_data": {}}, "MISSING_REQUIRED_FIELD", "template_id"),
        (FROM, {"template_id": "t", "timeout_seconds": 86_401}, "INVALID_TIMEOUT", "timeout_seconds"),
        (FROM, {"template_id": "t", "priority": 0}, "INVALID_PRIORITY", "priority"),
    ],
)  # fmt: skip
async def test_bad_input_is_a_400_with_the_documents_code(client: Client, admin, path, body, code, field):
    answer = await client.post(path, json=body, headers=admin)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, code), answer.text
    assert error["details"].get("field") == field or field is None
    if path != FROM:
        assert (await client.get(path, headers=admin)).json()["pagination"]["total"] == 0


async def test_a_change_is_checked_as_what_is_new(client: Client, admin):
    one = f"{SCHEDULES}/{(await client.post(SCHEDULES, json=SCHEDULE, headers=admin)).json()['schedule_id']}"
    for body in ({"cron_expression": "nonsense"}, {"timezone": "America"}):
        answer = await client.patch(one, json=body, headers=admin)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_CRON_EXPRESSION")
    before = (await client.get(one, headers=admin)).json()
    sneaky = {
        "schedule_id": "x",
        "owner": "y",
        "client_id": "z",
        "next_run_at": "2000-01-01T00:00:00Z",
        "runs_fired": 9,
    }
    assert (await client.patch(one, json=sneaky, headers=admin)).json() == before


async def test_anothers_are_404_on_every_route_and_a_key_acts_for_its_own_client(client: Client, admin, user, shop):
    ann = await user("ann")
    mine = {"client_id": "shop"}
    chain = (await client.post(CHAINS, json=CHAIN | mine, headers=shop)).json()["chain_id"]
    schedule = (await client.post(SCHEDULES, json=SCHEDULE | mine, headers=shop)).json()["schedule_id"]
    template = (await client.post(TEMPLATES, json=TEMPLATE | mine, headers=shop)).json()["template_id"]
    for code, one, actions in (
        ("CHAIN_NOT_FOUND", f"{CHAINS}/{chain}", ("cancel", "retry")),
        ("SCHEDULE_NOT_FOUND", f"{SCHEDULES}/{schedule}", ("pause", "resume", "run-now")),
        ("TEMPLATE_NOT_FOUND", f"{TEMPLATES}/{template}", ()),
    ):
        asked = [("GET", one), ("DELETE", one), *(("POST", f"{one}/{action}") for action in actions)]
        asked += [] if "CHAIN" in code else [("PATCH", one)]
        asked += [("GET", f"{one}/runs")] if "SCHEDULE" in code else []
        for method, path in asked:
            body = {} if method == "PATCH" else None
            answer = await client.request(method, path, json=body, headers=ann)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, code), (method, path)
        assert (await client.get(one, headers=shop)).status_code == 200
        assert (await client.get(one, headers=admin)).status_code == 200
    stolen = await client.post(FROM, json={"template_id": template}, headers=ann)
    assert (stolen.status_code, stolen.json()["error"]["code"]) == (404, "TEMPLATE_NOT_FOUND")
    for path, body in (
        (CHAINS, CHAIN), (SCHEDULES, SCHEDULE), (TEMPLATES, TEMPLATE),
        (FROM, {"template_id": template, "client_id": "other"}),
    ):  # fmt: skip
        refused = await client.post(path, json=body, headers=shop)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "INSUFFICIENT_PERMISSIONS"), path
    made = await client.post(FROM, json={"template_id": template}, headers=shop)
    task = (await client.get(f"/ains/tasks/{made.json()['task_id']}", headers=shop)).json()
    assert task["client_id"] == "shop"


async def test_an_idempotency_key_starts_a_chain_once(client: Client, admin, core: Core):
    headers = admin | {"Idempotency-Key": "chain-1"}
    first, second = [await client.post(CHAINS, json=CHAIN, headers=headers) for _ in range(2)]
    assert first.json() == second.json() and second.headers["idempotency-replayed"] == "true"
    assert (await client.get(CHAINS, headers=admin)).json()["pagination"]["total"] == 1
    assert await core.store.count(Task, "list", "all") == 1
