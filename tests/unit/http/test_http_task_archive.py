"""Tasks over HTTP whose records are partly in Redis and partly in the archive: nobody can tell which."""

from collections.abc import Callable
from typing import Any

import pytest
from http_harness import Client
from task_archive_harness import all_read, end, mover
from test_ains import TAG, order

from cluster.tasks.archive import FOLDER, TaskArchive
from cluster.tasks.explain import Explainer
from cluster.tasks.model import Task
from cluster.tasks.service import Tasks
from cluster.trust.service import Trust
from cluster.workflows.chains.runner import ChainRunner
from cluster.workflows.chains.service import Chains
from serve_apps.core import Core

Ask = Callable[..., Any]


@pytest.fixture
async def ask(core: Core, client: Client, admin) -> Ask:
    """`await ask("GET", path, status=404, json=..., headers=...)` as the admin, or somebody else."""
    core.tasks = Tasks(core.store, archive=TaskArchive(core.settings.home / FOLDER))
    core.explainer = Explainer(core.store, core.tasks, Trust(core.store))
    core.chains = Chains(core.store, core.tasks)

    async def call(
        method: str, path: str, status: int = 200, headers: dict[str, str] | None = None, **more: Any
    ) -> Any:
        answer = await client.request(method, path, headers=headers or admin, **more)
        assert answer.status_code == status, answer.text
        return answer.json()

    return call


async def submitted(ask: Ask, count: int, **more: Any) -> list[str]:
    return [
        (await ask("POST", "/ains/tasks", 201, json=order(input_data={"n": n}), **more))["task_id"]
        for n in range(count)
    ]


async def archived(core: Core, count: int) -> None:
    """The oldest that have ended, of which there are more than that."""
    await all_read(core.store)
    ended = sum(await core.store.counts(Task, "list", [("all", s) for s in ("COMPLETED", "FAILED", "CANCELLED")]))
    assert await mover(core.store, core.settings.home / FOLDER, ended - count).step() == count


async def test_a_list_goes_on_in_the_archive_with_the_same_filters_and_totals(core: Core, ask: Ask):
    ids = await submitted(ask, 12)
    for n, task_id in enumerate(ids[:10]):
        await end(core.store, task_id, result={"n": n}, error="" if n % 5 else "broken")
    before = await ask("GET", "/ains/tasks?limit=100")
    failed = await ask("GET", "/ains/tasks?status=FAILED")
    await archived(core, 7)
    assert await core.store.count(Task, "list", "all") == 5
    assert await ask("GET", "/ains/tasks?limit=100") == before
    assert await ask("GET", "/ains/tasks?status=FAILED") == failed and failed["pagination"]["total"] == 2
    seen, offset = [], 0
    while offset is not None:  # page by page, over the border
        page = await ask("GET", f"/ains/tasks?limit=3&offset={offset}")
        assert page["pagination"]["total"] == 12
        seen, offset = seen + [task["task_id"] for task in page["results"]], page["pagination"]["next_offset"]
    assert seen == ids[::-1]
    seen, cursor = [], ""
    while cursor is not None:
        page = await ask("GET", f"/ains/tasks?limit=5&sort=asc&cursor={cursor}")
        seen, cursor = seen + [task["task_id"] for task in page["results"]], page["pagination"]["next_cursor"]
    assert seen == ids
    page = await ask("GET", f"/ains/tasks?capability={TAG}&status=COMPLETED,PENDING&limit=4")
    assert len(page["results"]) == 4 and page["pagination"]["has_more"]


async def test_a_task_that_has_left_is_shown_explained_and_final(core: Core, ask: Ask, user):
    [task_id] = await submitted(ask, 1)
    await end(core.store, task_id, error="broken")
    before = [await ask("GET", f"/ains/tasks/{task_id}{what}") for what in ("", "/dependencies", "/why")]
    await archived(core, 1)
    assert await core.store.find(Task, task_id) is None
    after = [await ask("GET", f"/ains/tasks/{task_id}{what}") for what in ("", "/dependencies", "/why")]
    assert before[2].pop("checked_at") < after[2].pop("checked_at")
    assert after == before and after[0]["status"] == "FAILED" and after[0]["error"] == "broken"
    ended = await ask("POST", f"/ains/tasks/{task_id}/cancel", 409, json={})
    assert ended["error"]["code"] == "TASK_NOT_CANCELLABLE"
    await ask("PATCH", f"/ains/tasks/{task_id}/priority", 409, json={"priority": 1})
    other = await user("bob")
    for what in ("", "/dependencies", "/why"):
        gone = await ask("GET", f"/ains/tasks/{task_id}{what}", 404, other)
        assert gone["error"]["code"] == "TASK_NOT_FOUND"
    assert (await ask("GET", "/ains/tasks", headers=other))["pagination"]["total"] == 0
    refused = await ask("POST", "/ains/tasks", 400, other, json=order(client_id="bob", depends_on=[task_id]))
    assert refused["error"]["code"] == "DEPENDENCY_NOT_FOUND"


async def test_a_dependency_that_has_left_blocks_only_if_it_failed(core: Core, ask: Ask):
    done, failed = await submitted(ask, 2)
    await end(core.store, done, result=1)
    await end(core.store, failed, error="broken")
    await archived(core, 2)
    free = await ask("POST", "/ains/tasks", 201, json=order(depends_on=[done]))
    assert not free["is_blocked"]
    blocked = await ask("POST", "/ains/tasks", 201, json=order(depends_on=[done, failed]))
    told = await ask("GET", f"/ains/tasks/{blocked['task_id']}/dependencies")
    assert told["dependencies_status"] == {done: "COMPLETED", failed: "FAILED"} and told["blocking_tasks"] == [failed]
    [why] = (await ask("GET", f"/ains/tasks/{blocked['task_id']}/why"))["blockers"]
    assert why["kind"] == "dependency" and failed in str(why)


async def test_a_chain_shows_the_results_of_steps_that_have_left(core: Core, ask: Ask):
    step = {"name": "one", "task_type": "sum", "capability_required": TAG, "input_data": {}}
    chain = await ask("POST", "/ains/task-chains", 201, json={"client_id": "shop", "name": "c", "steps": [step]})
    [task] = (await ask("GET", "/ains/tasks"))["results"]
    await end(core.store, task["task_id"], result={"sum": 7})
    path = f"/ains/task-chains/{chain['chain_id']}"
    runner = ChainRunner(core.store, core.tasks)
    while await runner.step(wait_seconds=0):
        pass
    before = await ask("GET", path)
    await archived(core, 1)
    assert await core.store.find(Task, task["task_id"]) is None
    assert await ask("GET", path) == before and before["step_results"]["0"]["data"] == {"sum": 7}
