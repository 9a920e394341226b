"""Tasks over HTTP: batches item by item, lists, waiting for an end, signs of life, and cancelling many."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from eventually import eventually
from http_harness import Client
from test_ains import TAG, Program, core, order, shop  # noqa: F401 - fixtures
from working_agent import accept

from cluster.clock import utc_now
from cluster.tasks.model import Task
from serve_apps.core import Core

BATCH, MANY = "/ains/tasks/batch", "/ains/tasks/cancel"


def item(ref: str = "", *depends_on: str, **fields: Any) -> dict[str, Any]:
    return order(ref=ref, depends_on=list(depends_on), **fields)


async def batch(client: Client, headers: dict[str, str], *items: Any) -> httpx.Response:
    return await client.post(BATCH, json={"tasks": list(items)}, headers=headers)


async def test_a_bad_item_does_not_lose_the_others(client: Client, admin, core: Core):  # noqa: F811
    items = [
        item("a"), item("b", "ref:a", priority=99), item("c", "ref:a"), item("d", "ref:b"),
        item(routing_strategy="luck"), {"client_id": "shop"}, "nonsense", item("c"), item("", "task_none", "ref:none"),
        item("e", "ref:e"), item("f", "ref:c", "ref:a"),
    ]  # fmt: skip
    answer = await batch(client, admin, *items)
    assert answer.status_code == 201, answer.text
    told = answer.json()
    assert (told["submitted"], told["failed"]) == (3, 8) and told["submission_time_ms"] > 0
    assert [(t["index"], t["ref"]) for t in told["tasks"]] == [(0, "a"), (2, "c"), (10, "f")]
    assert [t["task_id"] for t in told["tasks"]] == told["task_ids"]
    assert {e["index"]: e["code"] for e in told["errors"]} == {
        1: "INVALID_PRIORITY", 3: "DEPENDENCY_NOT_FOUND", 4: "INVALID_ROUTING_STRATEGY", 5: "MISSING_REQUIRED_FIELD",
        6: "INVALID_REQUEST", 7: "INVALID_FIELD_VALUE", 8: "DEPENDENCY_NOT_FOUND", 9: "CIRCULAR_DEPENDENCY",
    }  # fmt: skip
    by = {e["index"]: e for e in told["errors"]}
    assert by[1]["ref"] == "b" and by[1]["details"]["field"] == "priority" and by[5]["ref"] is None
    assert by[3]["details"]["missing"] == ["ref:b"] and by[8]["details"]["missing"] == ["ref:none", "task_none"]
    assert len(by[5]["details"]["errors"]) == 3
    last = (await client.get(f"/ains/tasks/{told['task_ids'][2]}", headers=admin)).json()
    assert last["depends_on"] == [told["task_ids"][1], told["task_ids"][0]] and last["is_blocked"]
    created = [event for event in await core.store.events() if event.kind == "task.created"]
    assert [event.subject for event in created] == told["task_ids"]


async def test_a_batch_of_which_nothing_can_be_taken_is_refused(client: Client, admin, core: Core):  # noqa: F811
    answer = await batch(client, admin, item(priority=0), item("a", "ref:a"))
    told = answer.json()["error"]
    assert answer.status_code == 400
    assert [e["code"] for e in told["details"]["errors"]] == ["INVALID_PRIORITY", "CIRCULAR_DEPENDENCY"]
    many = await batch(client, admin, *[order()] * 101)
    assert (many.status_code, many.json()["error"]["code"]) == (400, "BATCH_SIZE_EXCEEDED")
    assert (await batch(client, admin)).status_code == 400
    assert (await client.get("/ains/tasks", headers=admin)).json()["pagination"]["total"] == 0


async def test_a_batch_of_another_client_is_refused_item_by_item(client: Client, admin, core: Core):  # noqa: F811
    body = {"client_id": "shop", "name": "shop", "scopes": ["tasks:write", "tasks:read"]}
    key = {"X-API-Key": (await client.post("/ains/api-keys", json=body, headers=admin)).json()["api_key"]}
    told = (await batch(client, key, order(), order(client_id="bank"))).json()
    assert told["submitted"] == 1 and told["errors"][0]["code"] == "INSUFFICIENT_PERMISSIONS"


async def test_the_same_batch_by_its_idempotency_key_is_one_batch(client: Client, admin, core: Core):  # noqa: F811
    headers = admin | {"Idempotency-Key": "once"}
    first, again = [await batch(client, headers, item("a"), item("b", priority=0)) for _ in range(2)]
    assert first.json() == again.json() and again.headers["idempotency-replayed"] == "true"
    assert (await client.get("/ains/tasks", headers=admin)).json()["pagination"]["total"] == 1


async def test_a_batch_with_references_runs_in_its_order(shop: Program):  # noqa: F811
    agent = await shop.agent("ada", max_concurrent_tasks=5)
    told = (await shop.ask("POST", BATCH, {"tasks": [item("last", "ref:b", "ref:c"), item("b", "ref:a"), item("c"),
                                                     item("a")]})).json()  # fmt: skip
    ids = {each["ref"]: each["task_id"] for each in told["tasks"]}
    await shop.reaches(ids["last"], "COMPLETED")
    ran = [task["task_id"] for task in agent.tasks]
    assert ran.index(ids["a"]) < ran.index(ids["b"]) < ran.index(ids["last"]) > ran.index(ids["c"])


async def test_a_task_takes_a_floor_of_trust_and_a_rule_of_heartbeats(shop: Program):  # noqa: F811
    await shop.agent("ada")
    high, low = await shop.submit(trust_min=0.9), await shop.submit(trust_min=0.4, heartbeat_seconds=30)
    done = await shop.reaches(low, "COMPLETED")
    assert (done["trust_min"], done["heartbeat_seconds"]) == (0.4, 30)
    assert (await shop.task(high))["status"] == "PENDING"
    for wrong in ({"trust_min": 1.5}, {"heartbeat_seconds": -1}, {"trust_min": "nan"}):
        assert (await shop.ask("POST", "/ains/tasks", order(**wrong))).status_code == 400


async def test_a_list_has_every_filter_of_the_record(client: Client, admin, core: Core):  # noqa: F811
    at = utc_now()
    for n in range(6):
        await core.store.create(
            Task(
                task_id=f"task_{n}", owner="user_x", client_id=("shop", "bank")[n % 2], capability_required="a:v1",
                task_type=("sum", "sort")[n % 2], priority=n + 1, parent_id="chain_1" if n < 2 else "", input_data={},
                state=("PENDING", "RUNNING", "FAILED")[n % 3], agent_id="ada" if n % 3 else "",
                created_at=at + timedelta(seconds=n), updated_at=at,
            )
        )  # fmt: skip

    async def page(**wanted: Any) -> dict[str, Any]:
        answer = await client.get("/ains/tasks", headers=admin, params=wanted)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def found(**wanted: Any) -> list[int]:
        return [int(task["task_id"].removeprefix("task_")) for task in (await page(**wanted))["results"]]

    assert await found() == [5, 4, 3, 2, 1, 0] and await found(sort="asc") == [0, 1, 2, 3, 4, 5]
    assert await found(status="PENDING") == [3, 0] and await found(status="PENDING,FAILED") == [5, 3, 2, 0]
    assert await found(client_id="bank") == [5, 3, 1] and await found(client_id="bank", status="RUNNING") == [1]
    assert await found(task_type="sum") == [4, 2, 0] and await found(capability="none") == []
    assert await found(parent_id="chain_1") == [1, 0] and await found(priority=6) == [5]
    assert await found(agent_id="ada") == [5, 4, 2, 1] and await found(agent_id="ada", status="RUNNING") == [4, 1]
    middle = (at + timedelta(seconds=2.5)).isoformat()
    assert await found(created_after=middle) == [5, 4, 3] and await found(created_before=middle, sort="asc") == [
        0,
        1,
        2,
    ]
    seen, cursor, pages = [], None, 0
    while cursor or not pages:
        told = await page(limit=2, task_type="sum", **({"cursor": cursor} if cursor else {}))
        seen += [task["task_id"] for task in told["results"]]
        cursor, pages = told["pagination"]["next_cursor"], pages + 1
    assert seen == ["task_4", "task_2", "task_0"] and pages == 2
    first = (await page(limit=4))["pagination"]
    assert (first["total"], first["has_more"], first["next_offset"]) == (6, True, 4)
    assert [t["task_id"] for t in (await page(limit=4, cursor=first["next_cursor"]))["results"]] == ["task_1", "task_0"]
    assert (await page(limit=4, offset=4))["pagination"]["next_cursor"] is None
    for wrong in (
        {"status": "DONE"}, {"cursor": "x"}, {"cursor": first["next_cursor"], "offset": 2}, {"sort": "up"},
        {"priority": 11}, {"created_after": "noon"},
    ):  # fmt: skip
        assert (await client.get("/ains/tasks", headers=admin, params=wrong)).status_code == 400, wrong


async def test_a_request_may_wait_for_the_end(shop: Program, core: Core):  # noqa: F811
    agent = await shop.agent("ada", accept)
    task_id = await shop.submit()
    await eventually(lambda: bool(agent.tasks))
    waiting = [asyncio.create_task(shop.ask("GET", f"/ains/tasks/{task_id}?wait=30")) for _ in range(3)]
    await eventually(lambda: sum(map(len, core.waits.endings.waiting.values())) == 3)
    [sent] = agent.tasks
    headers = {"X-Task-Token": sent["task_token"]}
    await shop.client.post(f"/ains/tasks/{task_id}/progress", json={"progress": 50}, headers=headers)
    assert not any(one.done() for one in waiting)
    await shop.client.post(
        f"/ains/tasks/{task_id}/result", json={"status": "COMPLETED", "result_data": 5}, headers=headers
    )
    for answer in await asyncio.wait_for(asyncio.gather(*waiting), 5):
        assert (answer.json()["status"], answer.json()["result_data"]) == ("COMPLETED", 5)
    assert not core.waits.endings.waiting and len(core.waits.connections) == 0
    ended = await shop.ask("GET", f"/ains/tasks/{task_id}?wait=30")  # at once
    assert ended.json()["status"] == "COMPLETED"


async def test_a_wait_ends_with_its_time_and_with_the_replica(shop: Program, core: Core, gateway):  # noqa: F811
    task_id = await shop.submit()
    core.waits.most_seconds = 0.2
    assert (await shop.ask("GET", f"/ains/tasks/{task_id}?wait=60")).json()["status"] == "PENDING"
    core.waits.most_seconds = 60
    waiting = asyncio.create_task(shop.ask("GET", f"/ains/tasks/{task_id}?wait=60"))
    await eventually(lambda: bool(core.waits.endings.waiting))
    await gateway.closing()
    assert (await asyncio.wait_for(waiting, 2)).json()["status"] == "PENDING"
    assert (await shop.ask("GET", f"/ains/tasks/{task_id}?wait=60")).status_code == 503  # another replica has it
    assert (await shop.ask("GET", f"/ains/tasks/{task_id}")).status_code == 200
    for wrong in (-1, 61, "x"):
        assert (await shop.ask("GET", f"/ains/tasks/{task_id}?wait={wrong}")).status_code == 400


async def test_waiting_again_and_again_misses_no_end(shop: Program):  # noqa: F811
    # Submitted and waited for at once: the end may come before, while and after somebody begins to listen.
    await shop.agent("ada", max_concurrent_tasks=10)

    async def one() -> str:
        task_id = await shop.submit()
        return (await shop.ask("GET", f"/ains/tasks/{task_id}?wait=20")).json()["status"]

    for _ in range(5):
        assert set(await asyncio.wait_for(asyncio.gather(*(one() for _ in range(8))), 10)) == {"COMPLETED"}


async def test_an_agent_says_how_far_it_is_and_asks_for_time(shop: Program, core: Core):  # noqa: F811
    agent = await shop.agent("ada", accept)
    task_id = await shop.submit(timeout_seconds=100)
    await eventually(lambda: bool(agent.tasks))
    [sent] = agent.tasks
    assert datetime.fromisoformat(sent["deadline"]) > utc_now() + timedelta(seconds=90)

    async def say(what: str, body: Any = None, token: str = sent["task_token"]) -> httpx.Response:
        return await shop.client.post(f"/ains/tasks/{task_id}/{what}", json=body, headers={"X-Task-Token": token})

    far = await say("progress", {"progress": 40, "message": "sorting", "metrics": {"rows": 7}})
    assert far.status_code == 200, far.text
    assert far.json() == {
        "task_id": task_id, "status": "RUNNING", "deadline": sent["deadline"], "cancelled": False, "progress": 40
    }  # fmt: skip
    shown = await shop.task(task_id)
    assert (shown["progress"], shown["progress_message"]) == (40, "sorting") and shown["last_heartbeat_at"]
    beat = (await say("heartbeat")).json()
    assert (beat["deadline"], beat["cancelled"]) == (sent["deadline"], False)  # nothing is extended silently
    more = (await say("heartbeat", {"extend_seconds": 50})).json()
    moved = datetime.fromisoformat(more["deadline"]) - datetime.fromisoformat(sent["deadline"])
    assert moved == timedelta(seconds=50)
    events = [e for e in await core.store.events() if e.kind in ("task.progress", "task.extended")]
    assert [e.kind for e in events] == ["task.progress", "task.progress", "task.extended"]
    assert events[0].data["progress"] == 40 and events[0].data["metrics"] == {"rows": 7}
    assert (await say("heartbeat", {"extend_seconds": 86_400})).status_code == 400
    for body in ({"progress": 101}, {"progress": -1}, {}, {"progress": 1, "message": "x" * 501}):
        assert (await say("progress", body)).status_code == 400
    for token in ("", "guess"):
        assert (await say("progress", {"progress": 1}, token)).status_code == 401
        assert (await say("heartbeat", None, token)).status_code == 401
    await shop.ask("POST", f"/ains/tasks/{task_id}/cancel", {"reason": "enough"})
    told = await say("heartbeat")
    assert told.json() == {"task_id": task_id, "status": "CANCELLED", "deadline": None, "cancelled": True}
    assert (await say("progress", {"progress": 90})).status_code == 409
    assert (await say("result", {"status": "COMPLETED"})).status_code == 409
    assert (await say("heartbeat", None, "guess")).status_code in (401, 409)


async def test_a_late_heartbeat_is_refused(shop: Program, core: Core):  # noqa: F811
    agent = await shop.agent("ada", accept)
    await shop.submit(timeout_seconds=1, max_retries=1)
    await eventually(lambda: len(agent.tasks) == 2, within=8)
    first, second = agent.tasks
    for sent, status in ((first, 409), (second, 200)):
        path, headers = f"/ains/tasks/{sent['task_id']}/heartbeat", {"X-Task-Token": sent["task_token"]}
        assert (await shop.client.post(path, headers=headers)).status_code == status


async def test_many_are_cancelled_each_with_its_own_answer(client: Client, core: Core, user):  # noqa: F811
    ann, ben = await user("ann"), await user("ben")
    mine = (await batch(client, ann, item("a"), item("b", "ref:a"), item("c", client_id="bank"))).json()["task_ids"]
    [theirs] = (await batch(client, ben, order())).json()["task_ids"]
    await client.post(f"/ains/tasks/{mine[2]}/cancel", json={"reason": ""}, headers=ann)
    body = {"task_ids": [*mine, theirs, "task_none", mine[0]], "reason": "enough"}
    answer = await client.post(MANY, json=body, headers=ann)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["cancelled"], told["failed"], told["has_more"]) == (2, 3, False)
    assert {e["task_id"]: e["code"] for e in told["errors"]} == {
        mine[2]: "TASK_NOT_CANCELLABLE", theirs: "TASK_NOT_FOUND", "task_none": "TASK_NOT_FOUND"
    }  # fmt: skip
    ended = await core.store.many(Task, mine[:2])
    assert [(t.state, t.reason) for t in ended] == [("CANCELLED", "enough")] * 2
    assert (await core.store.get(Task, theirs)).state == "PENDING"


@pytest.mark.parametrize("by", ["client", "parent"])
async def test_all_of_a_client_or_a_parent_are_cancelled(client: Client, core: Core, admin, by: str):  # noqa: F811
    told = (await batch(client, admin, *[order() for _ in range(30)], *[order(client_id="bank")] * 3)).json()
    ids = told["task_ids"]
    for task_id in ids[:5]:
        await core.store.change(Task, task_id, lambda t: t.model_copy(update={"parent_id": "chain_1"}))
    body = {"client_id": "shop"} if by == "client" else {"parent_id": "chain_1"}
    answer = (await client.post(MANY, json=body, headers=admin)).json()
    wanted = ids[:30] if by == "client" else ids[:5]
    assert answer["cancelled"] == len(wanted) and set(answer["task_ids"]) == set(wanted) and not answer["errors"]
    again = (await client.post(MANY, json=body, headers=admin)).json()
    assert again["cancelled"] == again["failed"] == 0
    assert (await client.post(MANY, json={}, headers=admin)).status_code == 400
    assert (await client.post(MANY, json={"task_ids": ["x"] * 1001}, headers=admin)).status_code == 400
