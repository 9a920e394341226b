from datetime import UTC, datetime

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
from cluster.store.indexes import index_key
from cluster.tasks import machine
from cluster.tasks.events import changed
from cluster.tasks.listing import Filter
from cluster.tasks.model import AGEING_SECONDS, MOST_PRIORITY, Task, TaskState, level, line, place
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
    async def queue() -> list[str]:
        return await tasks.store.ids(Task, "ready", *line("sums:v1", "user_ann"))

    low, high = await submit(tasks, priority=2), await submit(tasks, priority=8)
    await submit(tasks, depends_on=(low.task_id,))
    middle = await submit(tasks, priority=5)
    assert await queue() == [
        high.task_id,
        middle.task_id,
        low.task_id,
    ]
    moved, before = await tasks.prioritise(ANN, low.task_id, 10)
    assert (moved.priority, before) == (10, 2)
    assert (await queue())[0] == low.task_id
    await tasks.cancel(ANN, high.task_id, "")
    assert high.task_id not in await queue()


@given(st.integers(1, 10), st.integers(1, 10), st.floats(0, 4e9), st.floats(0, 4e9))
def test_the_queue_orders_by_priority_and_age_of_which_five_minutes_are_worth_a_step(p, q, a, b):
    first, second = (place(*of) for of in ((p, datetime.fromtimestamp(a, UTC)), (q, datetime.fromtimestamp(b, UTC))))
    earlier_by = (b - a) + (p - q) * AGEING_SECONDS
    if abs(earlier_by) > 0.001:
        assert (first < second) == (earlier_by > 0)


@given(st.integers(1, 10), st.floats(0, 1e6))
def test_waiting_raises_the_priority_by_a_step_every_five_minutes_up_to_ten(priority, waited):
    born = utc_now()
    reached = level(place(priority, born), born.timestamp() + waited)
    assert reached == min(MOST_PRIORITY, priority + int(waited // AGEING_SECONDS)) or (
        abs(waited / AGEING_SECONDS - round(waited / AGEING_SECONDS)) < 1e-6  # on the edge of a step
    )


async def test_a_share_is_the_client_of_a_key_and_the_user_where_the_client_is_a_claim(tasks: Tasks):
    # Else a user would get as many shares as it invents clients.
    shares = [(await submit(tasks, who, client_id="shop")).share for who in (KEY, SYSTEM, ANN)]
    assert shares == ["shop", "shop", "user_ann"]
    assert (await submit(tasks, ANN, client_id="bank")).share == "user_ann"


@given(st.lists(st.text(alphabet="ab:%", max_size=4), min_size=2, max_size=2, unique=True))
def test_no_two_shares_have_the_same_queue(shares):
    keys = {index_key(Task.kind, "ready", line("sums:v1", share)) for share in shares}
    keys |= {index_key(Task.kind, "ready", line("sums:v1:a", share)) for share in shares}
    assert len(keys) == 4


async def test_lists_are_filtered_by_owner_client_and_state(tasks: Tasks):
    await submit(tasks, ANN)
    await submit(tasks, ANN, client_id="bank")
    await submit(tasks, BEN)
    done = await submit(tasks, KEY)
    await tasks.cancel(KEY, done.task_id, "")

    async def total(who: Principal, **filters) -> int:
        page = await tasks.page(who, Filter(**filters))
        assert len(page.items) == page.total
        return page.total

    assert await total(SYSTEM) == 4 and await total(ANN) == 2 and await total(KEY) == 1
    assert await total(SYSTEM, client_id="shop") == 3 and await total(ANN, client_id="shop") == 1
    assert await total(ANN, client_id="none") == 0 and await total(KEY, client_id="shop") == 1
    assert await total(KEY, client_id="bank") == 0
    ended, waiting = frozenset({TaskState.CANCELLED}), frozenset({TaskState.PENDING})
    assert await total(SYSTEM, states=ended) == 1 and await total(ANN, states=ended) == 0
    assert await total(SYSTEM, client_id="shop", states=waiting) == 2
    assert await total(ANN, client_id="bank", states=waiting) == 1
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
