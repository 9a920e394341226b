"""The life of a farm task and of a rank: tables, clocks that pauses stop, and when a round is over."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import Conflict
from cluster.farm import machine
from cluster.farm.machine import RANK, TASK, RankEvent, TaskEvent, Verdict
from cluster.farm.model import FINAL, FarmTask, Rank, RankState, Round, TaskState
from cluster.farm.order import Order

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def task(state: TaskState = TaskState.RUNNING, order: dict | None = None, **fields) -> FarmTask:
    wanted = Order(**{"type": "training", "n_clients": 4} | (order or {}))
    return FarmTask(task_id="task_1", owner="u", order=wanted, state=state, created_at=NOON, updated_at=NOON, **fields)


def rank(number: int = 0, state: RankState = RankState.HELD, **fields) -> Rank:
    return Rank(
        rank_id=f"task_1.0.{number}", task_id="task_1", owner="u", round=0, rank=number, client_id="c", state=state,
        **({"assigned_at": NOON, "deadline": NOON} | fields),
    )  # fmt: skip


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


@pytest.mark.parametrize("state", TaskState)
@pytest.mark.parametrize("event", TaskEvent)
def test_a_task_moves_as_the_table_says_and_no_other_way(state: TaskState, event: TaskEvent):
    if (state, event) in TASK:
        moved = machine.advance(task(state), event, NOON)
        assert moved.state is TASK[state, event] and (moved.completed_at is None) == (moved.state not in FINAL)
    else:
        with pytest.raises(Conflict):
            machine.advance(task(state), event, NOON)


@pytest.mark.parametrize("state", RankState)
@pytest.mark.parametrize("event", RankEvent)
def test_a_rank_moves_as_the_table_says_and_no_other_way(state: RankState, event: RankEvent):
    if (state, event) in RANK:
        assert machine.move(rank(state=state), event).state is RANK[state, event]
    else:
        with pytest.raises(Conflict):
            machine.move(rank(state=state), event)


def test_the_end_is_the_end():
    assert not [state for state, _ in TASK if state in FINAL]
    assert not [s for s, _ in RANK if s in (RankState.COMPLETED, RankState.CUT, RankState.DEAD)]


def test_a_pause_stops_every_clock():
    begun = rank()
    paused = machine.pause(task(order={"timeout_seconds": 100}, cut_at=after(50)), "", after(10))
    assert not paused.cuts and not paused.has_work and machine.worked_seconds(paused, begun, after(40)) == 10
    again = machine.resume(paused, "", after(40))
    assert again.cut_at == after(80) and again.paused_seconds == 30
    assert machine.deadline(again, begun, after(41)) == after(130)
    assert machine.worked_seconds(again, begun, after(45)) == 15
    late = rank(1, assigned_at=after(45), paused_before=30.0)
    assert machine.deadline(again, late, after(46)) == after(145), "earlier pauses are nothing to it"


@given(st.lists(st.tuples(st.booleans(), st.floats(0.1, 100)), max_size=12))
def test_worked_and_paused_seconds_are_all_the_time_there_is(spans):
    now, at = task(), 0.0
    worked = 0.0
    for pause, seconds in spans:
        now = (machine.pause if pause else machine.resume)(now, "", after(at))
        at += seconds
        worked += 0.0 if pause else seconds
    assert machine.worked_seconds(now, rank(), after(at)) == pytest.approx(worked, abs=1e-3)


def test_ranks_go_out_in_order_and_those_that_came_back_first():
    now = task(TaskState.PENDING)
    now = machine.handed_out(now, machine.next_rank(now) or 0, NOON)
    assert now.state is TaskState.RUNNING and machine.next_rank(now) == 1
    now = now.model_copy(update={"handed": 3, "open_ranks": (0, 2)})
    assert machine.next_rank(now) == 0
    now = machine.handed_out(now, 0, NOON)
    assert (now.open_ranks, now.handed) == ((2,), 3)
    now = machine.handed_out(machine.handed_out(now, 2, NOON), 3, NOON)
    assert machine.next_rank(now) is None and not now.has_work


def test_failures_spend_retries_losses_only_so_many_and_giving_back_none():
    now = task(order={"max_retries": 2})
    for state, fields, kept in (
        (RankState.FAILED, {"failures": 2}, True), (RankState.FAILED, {"failures": 3}, False),
        (RankState.LOST, {"losses": 19}, True), (RankState.LOST, {"losses": 20}, False),
        (RankState.RELEASED, {"failures": 9, "losses": 99}, True),
    ):  # fmt: skip
        fates = machine.fates(now, [rank(state=state, **fields)])
        assert (len(fates.reopened), len(fates.dropped)) == ((1, 0) if kept else (0, 1)), (state, fields)


def test_when_a_round_is_over():
    strict = task()
    assert machine.verdict(strict, 3, 0, NOON) is Verdict.WAIT
    assert machine.verdict(strict, 4, 0, NOON) is Verdict.CLOSE
    assert machine.verdict(strict, 3, 1, NOON) is Verdict.FAIL, "nobody said that a rank may be left out"
    lenient = task(order={"straggler_seconds": 10, "min_ranks": 3}, cut_at=after(10))
    assert machine.verdict(lenient, 3, 0, after(9)) is Verdict.WAIT
    assert machine.verdict(lenient, 2, 0, after(99)) is Verdict.WAIT, "late, and not enough"
    assert machine.verdict(lenient, 3, 0, after(10)) is Verdict.CLOSE
    assert machine.verdict(lenient, 3, 1, NOON) is Verdict.CLOSE, "nobody is left to wait for"
    assert machine.verdict(lenient, 2, 2, NOON) is Verdict.FAIL
    assert task(order={"straggler_seconds": 1, "n_clients": 5}).order.enough == 3


def ended(number: int, aggregated: bool) -> Round:
    return Round(round=number, completed=4, left_out=0, samples=None, aggregated=aggregated, ended_at=NOON)


def test_a_round_begins_with_the_newest_average_that_there_is():
    now = task(order={"rounds": 8}, handed=4, open_ranks=(), cut_at=NOON)
    assert machine.begins_with(now) is None
    for number, aggregated in enumerate((True, False, True, True, True)):
        now = machine.closed(now, ended(number, aggregated), {"loss": number}, NOON)
        assert (now.round, now.handed, now.cut_at) == (number + 1, 0, None)
    assert now.averages == (3, 4, 5) and now.metrics == {"loss": 4}
    assert [machine.begins_with(now, n) for n in (None, 99, 5, 4, 3, 2)] == [5, 5, 5, 4, 3, None]
    for number in (5, 6):
        now = machine.closed(now, ended(number, False), {}, NOON)
    done = machine.closed(now, ended(7, False), {}, NOON)
    assert done.state is TaskState.COMPLETED and done.aggregated is False and done.metrics == {"loss": 4}


def test_progress_is_the_mean_over_ranks_and_rounds():
    assert machine.progress(task(TaskState.PENDING), 0, ()) == 0
    assert machine.progress(task(), 0, [45.5, 0, 0, 0]) == pytest.approx(11.375)
    assert machine.progress(task(order={"rounds": 2}, round=1), 2, [50.0]) == pytest.approx((100 + 62.5) / 2)
    assert machine.progress(task(TaskState.COMPLETED), 0, ()) == 100


def test_metrics_of_several_ranks_are_means_weighed_by_samples():
    a = rank(0, metrics={"loss": 1.0, "note": "a", "only": 3, "ok": True}, samples=10)
    b = rank(1, metrics={"loss": 3.0, "note": "b"}, samples=30)
    assert machine.mean_metrics([]) == {} and machine.mean_metrics([a, rank(2)]) == a.metrics
    assert machine.mean_metrics([a, b]) == {"loss": 2.5, "only": 3}
    assert machine.mean_metrics([a, b.model_copy(update={"samples": None})])["loss"] == 2.0


def test_what_is_deleted_is_stopped_and_out_of_sight():
    gone = machine.deleted(task(), NOON)
    assert gone.state is TaskState.CANCELLED and gone.deleted and gone.unsettled and not gone.live
    assert machine.deleted(task(TaskState.COMPLETED), NOON).state is TaskState.COMPLETED
