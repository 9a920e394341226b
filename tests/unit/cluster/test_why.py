"""Why a task is where it is: each blocker as a rule, and from a real store and router."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from eventually import eventually
from working_agent import accept, fail

from cluster.errors import TaskNotFound
from cluster.identity.model import SYSTEM, Principal
from cluster.presence import beat
from cluster.store import Write
from cluster.tasks.events import changed
from cluster.tasks.explain import Explainer
from cluster.tasks.model import Task, TaskState
from cluster.tasks.service import TaskSpec
from cluster.tasks.verification import Replication, replica_id
from cluster.tasks.why import Blocker, Facts, Seen, why

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
LATER = NOON + timedelta(seconds=30)


def task(name: str = "task_1", **fields: Any) -> Task:
    plain: dict[str, Any] = {
        "task_id": name, "owner": "u", "client_id": "c", "share": "c", "task_type": "t",
        "capability_required": "sums:v1", "created_at": NOON, "updated_at": NOON,
    }  # fmt: skip
    return Task(**plain | fields)


def agent(name: str = "ada", **fields: Any) -> Seen:
    return Seen(**{"agent_id": name, "active": True, "held": 0, "capacity": 1, "trust": 0.5} | fields)


def around(*agents: Seen, **fields: Any) -> Facts:
    return Facts(**{"at": NOON, "agents": agents} | fields)


def kinds(of: Task, facts: Facts) -> list[str]:
    return [blocker.kind for blocker in why(of, facts)]


@pytest.mark.parametrize(
    ("of", "facts", "expected"),
    [
        (task(), around(), ["capability"]),
        (task(), around(router_alive=False), ["router", "capability"]),
        (task(), around(agent()), ["queue"]),
        (task(), around(agent(), agent("bob", active=False), ahead=3), ["queue"]),
        (task(), around(agent(active=False)), ["inactive"]),
        (task(excluded=("ada",)), around(agent()), ["excluded"]),
        (task(trust_min=0.9), around(agent(), agent("bob", trust=0.8)), ["trust_floor"]),
        (task(), around(agent(held=1), ahead=2), ["capacity", "queue"]),
        (task(), around(agent(rests_until=LATER)), ["unreachable"]),
        (task(), around(agent(rests_until=NOON)), ["queue"]),
        (task(), around(agent(pulls=True)), ["not_asking"]),
        (task(), around(agent(pulls=True, offered=1, capacity=5)), ["queue"]),
        (task(), around(agent(pulls=True, offered=1, capacity=5, held=1)), ["capacity"]),
        (task(suspect=True), around(agent()), ["suspect"]),
        (
            task(trust_min=0.9, excluded=("eve",)),
            around(agent(active=False), agent("eve"), agent("bob", trust=0.95, held=1), agent("dan")),
            ["capacity", "trust_floor", "excluded", "inactive"],
        ),
        (task(not_before=LATER, retry_count=1, error="broke"), around(), ["schedule"]),
        (task(not_before=LATER), around(), ["schedule"]),
        (task(waiting_for=("task_2", "task_3")), around(), ["dependency", "dependency"]),
        (task(verification=Replication(asked=1)), around(), ["verification"]),
        (task(state="ASSIGNED", agent_id="ada", attempt=1, deadline=LATER), around(), ["delivery"]),
        (task(state="ASSIGNED", agent_id="ada", pickup_by=LATER), around(), ["pickup"]),
        (task(state="RUNNING", agent_id="ada", deadline=LATER, started_at=NOON, progress=40.0), around(), ["running"]),
        (task(state="COMPLETED", agent_id="ada", completed_at=LATER), around(), ["completed"]),
        (task(state="CANCELLED", reason="enough"), around(), ["cancelled"]),
        (task(state="FAILED", error="broke", attempt=4, agent_id="ada"), around(), ["failed"]),
        (task(state="TIMEOUT", error="no result within 300 s"), around(), ["timeout"]),
    ],
)
def test_each_thing_that_keeps_a_task_is_named(of: Task, facts: Facts, expected: list[str]):
    blockers = why(of, facts)
    assert [blocker.kind for blocker in blockers] == expected
    assert all(blocker.message for blocker in blockers)
    assert all(blocker.unblocks for blocker in blockers if of.state not in ("COMPLETED", "CANCELLED"))


def test_a_blocker_says_who_and_how_much():
    [blocker] = why(task(trust_min=0.9), around(agent(), agent("bob", trust=0.8)))
    assert blocker.details["best"] == 0.8 and [a["agent_id"] for a in blocker.details["agents"]] == ["ada", "bob"]
    [blocker] = why(task(), around(agent(held=1)))
    assert blocker.details["agents"] == [{"agent_id": "ada", "held": 1, "max_concurrent_tasks": 1}]
    [blocker] = why(task(), around(agent(), ahead=2, ready=3))
    assert blocker.message == "2 tasks of the same client before it" and blocker.details["ready_of_this_client"] == 3
    many = around(*(agent(f"a{n}", active=False) for n in range(50)))
    [blocker] = why(task(), many)
    assert blocker.details["count"] == 50 and len(blocker.details["agents"]) == 20


def test_the_end_of_a_chain_of_dependencies_is_named():
    others = {
        "task_2": task("task_2", waiting_for=("task_3", "task_4"), depends_on=("task_3", "task_4")),
        "task_3": task("task_3"),
        "task_4": task("task_4", state="FAILED", error="broke"),
    }
    [blocker] = why(task(waiting_for=("task_2",)), around(others=others))
    assert blocker.details["path"] == ["task_2", "task_4"] and blocker.details["root_cause"]["message"] == "broke"
    failed = task(state="FAILED", depends_on=("task_2",), reason="dependency task_2 is FAILED")
    gone = {
        "task_2": task("task_2", state="FAILED", depends_on=("task_4", "task_3"), reason="dependency task_4 is FAILED"),
        "task_3": task("task_3", state="COMPLETED"), "task_4": others["task_4"],
    }  # fmt: skip
    [blocker] = why(failed, around(others=gone))
    assert blocker.kind == "dependency" and blocker.details["path"] == ["task_2", "task_4"]
    assert blocker.details["root_cause"] == {"task_id": "task_4", "status": TaskState.FAILED, "message": "broke"}
    [blocker] = why(task(waiting_for=("task_9",)), around())
    assert blocker.details["root_cause"]["status"] == "unknown"


@pytest.fixture
def explain(village):
    explainer = Explainer(village.store, village.tasks, village.trust)

    async def ask(task_id: str, who: Principal = SYSTEM) -> list[Blocker]:
        return (await explainer.why(who, task_id)).blockers

    return ask


async def test_of_what_really_waits(village, explain):
    nobody = await village.submit(capability_required="rare:v1")
    assert [b.kind for b in await explain(nobody.task_id)] == ["router", "capability"]
    await village.agent("ada", accept, room=1)
    village.route()
    running = await village.submit()
    await eventually(village.reaches(running.task_id, "RUNNING"))
    waiting = [await village.submit() for _ in range(3)]
    [blocker] = await explain(running.task_id)
    assert blocker.kind == "running" and blocker.details["agent_id"] == "ada"

    async def full() -> bool:
        return [b.kind for b in await explain(waiting[2].task_id)] == ["capacity", "queue"]

    await eventually(full)
    [_, queue] = await explain(waiting[2].task_id)
    assert queue.details["ahead"] == 2 and queue.details["ready_of_this_client"] == 3
    urgent = await village.submit(priority=9)
    assert (await explain(waiting[2].task_id))[1].details["ahead"] == 3
    assert [b.kind for b in await explain(urgent.task_id)] == ["capacity"]
    behind = await village.submit(depends_on=[waiting[0].task_id])
    further = await village.submit(depends_on=[behind.task_id])
    [blocker] = await explain(further.task_id)
    assert blocker.details["path"] == [behind.task_id, waiting[0].task_id]
    await village.tasks.cancel(SYSTEM, waiting[0].task_id, "not wanted")
    await eventually(village.reaches(further.task_id, "FAILED"))
    [blocker] = await explain(further.task_id)
    assert blocker.details["root_cause"]["task_id"] == waiting[0].task_id
    assert blocker.details["root_cause"]["message"] == "not wanted"


async def test_tasks_of_one_batch_stand_one_behind_the_other(village, explain):
    order = {"client_id": "c", "task_type": "sum", "capability_required": "sums:v1", "input_data": {}}
    tasks = await village.tasks.submit(SYSTEM, [TaskSpec(**order) for _ in range(5)])
    await village.register("ada", "pull:")
    ahead = []
    for one in tasks:
        blockers = {b.kind: b for b in await explain(one.task_id)}
        ahead.append(blockers["queue"].details["ahead"] if "queue" in blockers else 0)
    assert sorted(ahead) == [0, 1, 2, 3, 4]


async def test_of_an_agent_that_does_not_answer_and_of_one_that_pulls(village, explain):
    await village.register("ada", "http://127.0.0.1:1/")
    village.route()
    waiting = await village.submit()

    async def unreachable() -> bool:
        return "unreachable" in [b.kind for b in await explain(waiting.task_id)]

    await eventually(unreachable, within=10)
    await village.register("bob", "pull:", ("pulled:v1",))
    pulled = await village.submit(capability_required="pulled:v1")
    assert [b.kind for b in await explain(pulled.task_id)] == ["not_asking"]
    await beat(village.store, "router", village.tasks.clock(), {"offers": {"bob": 1}})
    assert [b.kind for b in await explain(pulled.task_id)] == ["queue"]


async def test_of_a_retry_and_of_the_end(village, explain):
    await village.agent("ada", fail)
    village.route()
    retried = await village.submit(max_retries=1)

    async def backs_off() -> bool:
        return [b.kind for b in await explain(retried.task_id)] == ["schedule"]

    await eventually(backs_off)
    [blocker] = await explain(retried.task_id)
    assert "before retry 1 of 1, after: asked to fail" in blocker.message
    await eventually(village.reaches(retried.task_id, "FAILED"))
    [blocker] = await explain(retried.task_id)
    assert blocker.message == "Failed by ada after 2 deliveries: asked to fail; no retry is left of 1"


async def test_of_a_verified_task(village, explain):
    verified = await village.submit(capability_required="rare:v1")
    name = replica_id(verified.task_id, 1)
    before, version = await village.store.load(Task, verified.task_id)
    after = verified.model_copy(update={"verification": Replication(asked=1)})
    child = verified.model_copy(update={"task_id": name, "parent_id": verified.task_id})
    assert await village.store.commit(Write(before, after, version), Write(None, child, event=changed(None, child)))
    [blocker] = await explain(verified.task_id)
    assert blocker.kind == "verification" and name in blocker.unblocks and blocker.details["most"] == 5


async def test_anothers_task_is_not_there(village, explain):
    mine = await village.submit()
    with pytest.raises(TaskNotFound):
        await explain(mine.task_id, Principal(principal_id="user_1", owner="user_1", username="eve"))
