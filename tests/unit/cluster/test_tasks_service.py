import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.clock import utc_now
from cluster.errors import (
    DependencyNotFound,
    Forbidden,
    Invalid,
    NotCancellable,
    StaleAttempt,
    TaskNotFound,
    Unauthenticated,
    UnknownStrategy,
)
from cluster.identity.model import SYSTEM, Principal
from cluster.store import Store
from cluster.tasks import machine
from cluster.tasks.events import changed
from cluster.tasks.model import Task, TaskState
from cluster.tasks.service import Tasks, TaskSpec

ANN = Principal(principal_id="user_ann", owner="user_ann", username="ann")
BEN = Principal(principal_id="user_ben", owner="user_ben", username="ben")
KEY = Principal(principal_id="key_1", owner="client_shop", username="shop", client_id="shop")


def spec(**fields) -> TaskSpec:
    wanted = {"client_id": "shop", "task_type": "sum", "capability_required": "sums:v1", "input_data": {"a": 1}}
    return TaskSpec(**wanted | fields)


@pytest.fixture
def tasks(store: Store) -> Tasks:
    return Tasks(store)


async def submit(tasks: Tasks, who: Principal = ANN, **fields) -> Task:
    [task] = await tasks.submit(who, [spec(**fields)])
    return task


async def held(tasks: Tasks, **fields) -> Task:
    task = await submit(tasks, **fields)
    at = utc_now()
    return await tasks.store.change(
        Task, task.task_id, lambda t: machine.accept(machine.assign(t, "ada", "secret", at), 1, at), changed
    )


async def test_a_task_is_seen_by_its_owner_and_by_admins(tasks: Tasks):
    task = await submit(tasks)
    assert await tasks.get(ANN, task.task_id) == task == await tasks.get(SYSTEM, task.task_id)
    for other in (BEN, KEY):
        with pytest.raises(TaskNotFound):
            await tasks.get(other, task.task_id)
        with pytest.raises(TaskNotFound):
            await tasks.cancel(other, task.task_id, "")
        with pytest.raises(TaskNotFound):
            await tasks.prioritise(other, task.task_id, 9)
        with pytest.raises(TaskNotFound):
            await tasks.dependencies(other, task.task_id)


async def test_a_key_speaks_for_its_own_client_only(tasks: Tasks):
    assert (await submit(tasks, KEY)).owner == "client_shop"
    with pytest.raises(Forbidden):
        await submit(tasks, KEY, client_id="bank")


async def test_a_batch_is_taken_whole_or_not_at_all(tasks: Tasks):
    with pytest.raises(UnknownStrategy):
        await tasks.submit(ANN, [spec(), spec(routing_strategy="luck")])
    with pytest.raises(DependencyNotFound):
        await tasks.submit(ANN, [spec(), spec(depends_on=("task_none",))])
    assert (await tasks.page(SYSTEM)).total == 0 and await tasks.store.events() == []
    made = await tasks.submit(ANN, [spec(input_data={"n": n}) for n in range(100)])
    assert [t.input_data["n"] for t in made] == list(range(100)) and (await tasks.page(ANN)).total == 100
    assert [e.kind for e in await tasks.store.events()] == ["task.created"] * 100


async def test_a_task_whose_text_cannot_be_written_is_refused(tasks: Tasks):
    with pytest.raises(Invalid):
        await submit(tasks, input_data={"a": "\ud800"})
    assert (await tasks.page(SYSTEM)).total == 0


@pytest.mark.parametrize(
    "field",
    [{"priority": 0}, {"priority": 11}, {"timeout_seconds": 0}, {"timeout_seconds": 86_401}, {"max_retries": 11}],
)
def test_a_specification_has_bounds(field):
    with pytest.raises(ValidationError):
        spec(**field)


async def test_another_owners_task_is_no_dependency(tasks: Tasks):
    task = await submit(tasks, BEN)
    with pytest.raises(DependencyNotFound) as error:
        await submit(tasks, ANN, depends_on=(task.task_id, "task_none"))
    assert error.value.details["missing"] == sorted([task.task_id, "task_none"])


async def test_dependencies_say_what_blocks(tasks: Tasks):
    first, second = await held(tasks), await submit(tasks)
    third = await submit(tasks, depends_on=(first.task_id, second.task_id, first.task_id))
    found = await tasks.dependencies(ANN, third.task_id)
    assert found.blocking.count(first.task_id) and not found.ready
    assert found.states == {first.task_id: "RUNNING", second.task_id: "PENDING"}
    await tasks.report(first.task_id, "secret", result_data=1)
    late = await submit(tasks, depends_on=(first.task_id,))
    assert late.waiting_for == () and (await tasks.dependencies(ANN, late.task_id)).ready


async def test_only_ready_tasks_stand_in_the_queue_the_urgent_first(tasks: Tasks):
    low, high = await submit(tasks, priority=2), await submit(tasks, priority=8)
    await submit(tasks, depends_on=(low.task_id,))
    middle = await submit(tasks, priority=5)
    assert await tasks.store.ids(Task, "ready", "sums:v1") == [high.task_id, middle.task_id, low.task_id]
    moved, before = await tasks.prioritise(ANN, low.task_id, 10)
    assert (moved.priority, before) == (10, 2)
    assert (await tasks.store.ids(Task, "ready", "sums:v1"))[0] == low.task_id
    await tasks.cancel(ANN, high.task_id, "")
    assert high.task_id not in await tasks.store.ids(Task, "ready", "sums:v1")


@given(st.integers(1, 10), st.integers(1, 10), st.floats(0, 4e9), st.floats(0, 4e9))
def test_the_queue_orders_by_priority_and_then_by_age(p, q, a, b):
    from datetime import UTC, datetime

    from cluster.tasks.model import _queue_place

    def place(priority, at):
        when = datetime.fromtimestamp(at, UTC)
        return _queue_place(
            Task(
                task_id="t", owner="u", client_id="c", task_type="t", capability_required="x", priority=priority,
                created_at=when, updated_at=when,
            )
        )  # fmt: skip

    if p != q:
        assert (place(p, a) < place(q, b)) == (p > q)
    elif abs(a - b) > 0.001:
        assert (place(p, a) < place(q, b)) == (a < b)


async def test_lists_are_filtered_by_owner_client_and_state(tasks: Tasks):
    await submit(tasks, ANN)
    await submit(tasks, ANN, client_id="bank")
    await submit(tasks, BEN)
    done = await submit(tasks, KEY)
    await tasks.cancel(KEY, done.task_id, "")

    async def total(who: Principal, **filters) -> int:
        page = await tasks.page(who, **filters)
        assert len(page.items) == page.total
        return page.total

    assert await total(SYSTEM) == 4 and await total(ANN) == 2 and await total(KEY) == 1
    assert await total(SYSTEM, client_id="shop") == 3 and await total(ANN, client_id="shop") == 1
    assert await total(ANN, client_id="none") == 0 and await total(KEY, client_id="shop") == 1
    assert await total(KEY, client_id="bank") == 0
    assert await total(SYSTEM, state=TaskState.CANCELLED) == 1 and await total(ANN, state=TaskState.CANCELLED) == 0
    assert await total(SYSTEM, client_id="shop", state=TaskState.PENDING) == 2
    assert await total(ANN, client_id="bank", state=TaskState.PENDING) == 1
    page = await tasks.page(SYSTEM, offset=1, limit=2)
    assert len(page.items) == 2 and page.total == 4 and page.items[0].created_at > page.items[1].created_at


async def test_an_ended_task_is_not_cancelled(tasks: Tasks):
    task = await submit(tasks)
    ended = await tasks.cancel(ANN, task.task_id, "no longer needed")
    assert ended.state == "CANCELLED" and ended.reason == "no longer needed" and ended.completed_at
    with pytest.raises(NotCancellable):
        await tasks.cancel(ANN, task.task_id, "again")


async def test_a_report_needs_the_token_of_the_current_attempt(tasks: Tasks):
    task = await held(tasks)
    with pytest.raises(TaskNotFound):
        await tasks.report("task_none", "secret")
    for token in ("", "secre", "another", "\u00fc", "2.another", "99999999999.x", "-1.x", "\u00b2.x"):
        with pytest.raises(Unauthenticated):
            await tasks.report(task.task_id, token, result_data=1)
    done = await tasks.report(task.task_id, "secret", result_data={"sum": 3})
    assert done.state == "COMPLETED" and done.result_data == {"sum": 3}
    with pytest.raises(StaleAttempt):
        await tasks.report(task.task_id, "secret", result_data={"sum": 4})


async def test_a_reported_failure_is_retried_after_a_wait_with_jitter(store: Store):
    # The bug: every report had the same jitter, so those that failed together came back together.
    tasks = Tasks(store, jitter=iter((0.0, 0.5)).__next__)
    waits = []
    for _ in range(2):
        task = await held(tasks)
        back = await tasks.report(task.task_id, "secret", error="no data")
        assert back.state == "PENDING" and back.retry_count == 1 and back.error == "no data"
        waits.append((back.not_before - back.updated_at).total_seconds())
    assert waits == [0.5, 0.75]


async def test_a_waiting_task_has_no_token_that_could_report(tasks: Tasks):
    task = await submit(tasks)
    with pytest.raises(StaleAttempt):
        await tasks.report(task.task_id, "guess", result_data=1)


async def test_who_has_no_token_learns_not_even_whether_there_is_such_a_task(tasks: Tasks):
    # The bug: without a token a waiting task was a 409 with its state, and one that does not exist a 404.
    for task_id in ((await submit(tasks)).task_id, "task_none"):
        with pytest.raises(Unauthenticated):
            await tasks.report(task_id, "", result_data=1)
