from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.clock import utc_now
from cluster.errors import Conflict, Invalid, NotCancellable, StaleAttempt
from cluster.store.indexes import entries
from cluster.tasks import machine
from cluster.tasks.events import ENDED, changed, kind_of
from cluster.tasks.machine import MAX_BACKOFF_SECONDS, NEXT, TaskEvent, advance
from cluster.tasks.model import FINAL, HELD, Task, TaskState

NOON = utc_now().replace(hour=12, minute=0, second=0, microsecond=0)


def later(seconds: float):
    return NOON + timedelta(seconds=seconds)


def task(**fields) -> Task:
    made = {
        "task_id": "task_1", "owner": "user_1", "client_id": "c", "task_type": "t", "capability_required": "x:v1",
        "created_at": NOON, "updated_at": NOON,
    }  # fmt: skip
    return Task(**made | fields)


def running(**fields) -> Task:
    given_out = machine.assign(task(**fields), "ada", "token", NOON)
    return machine.start(given_out, given_out.attempt, later(1))


def test_the_table_leaves_no_final_state():
    assert not FINAL & {state for state, _ in NEXT} and set(TaskState) - {state for state, _ in NEXT} == FINAL
    assert HELD | FINAL | {TaskState.PENDING} == set(TaskState) and set(ENDED) == FINAL


@pytest.mark.parametrize("state", TaskState)
@pytest.mark.parametrize("event", TaskEvent)
def test_what_the_table_does_not_name_is_a_conflict(state, event):
    if (state, event) in NEXT:
        assert advance(task(state=state), event, NOON).state is NEXT[state, event]
    else:
        with pytest.raises(NotCancellable if event is TaskEvent.CANCEL else Conflict):
            advance(task(state=state), event, NOON)


@pytest.mark.parametrize(
    ("retries", "spent", "after"), [(0, 0, "FAILED"), (3, 0, "PENDING"), (3, 2, "PENDING"), (3, 3, "FAILED")]
)
def test_a_failure_is_retried_while_retries_are_left(retries, spent, after):
    failed = machine.fail(running(max_retries=retries, retry_count=spent), 1, "broke", later(5), jitter=0.5)
    assert failed.state == after and failed.error == "broke" and failed.deadline is None
    assert failed.retry_count == spent + (after == "PENDING")
    assert (failed.completed_at is None) == (after == "PENDING")


def test_a_retry_waits_and_forgets_its_agent():
    again = machine.fail(running(), 1, "broke", later(5), jitter=1.0)
    assert again.not_before == later(6) and again.agent_id == again.task_token == "" and again.started_at is None
    assert machine.wake(again, later(5.9)) is again and machine.wake(again, later(6)).not_before is None
    with pytest.raises(Conflict):
        machine.assign(again, "bob", "t", later(5.5))


@given(st.integers(0, 10), st.floats(0, 1, exclude_max=True))
def test_backoff_is_at_most_a_minute_and_at_least_half_of_its_step(retries, jitter):
    step = min(2.0**retries, MAX_BACKOFF_SECONDS)
    assert step / 2 <= machine.backoff_seconds(retries, jitter) <= step <= 60


def test_a_deadline_counts_from_the_first_assignment_across_agents_that_did_not_answer():
    first = machine.assign(task(timeout_seconds=10), "ada", "a", NOON)
    back = machine.release(first, 1, later(4))
    assert back.state == "PENDING" and back.retry_count == 0 and back.deadline == later(10) and back.agent_id == ""
    second = machine.assign(back, "bob", "b", later(5))
    assert second.attempt == 2 and second.deadline == later(10)


def test_a_deadline_ends_a_try_and_never_before_its_time():
    held = running(timeout_seconds=10, max_retries=0)
    assert machine.lapse(held, later(9.99), 0.5) is held
    ended = machine.lapse(held, later(10), 0.5)
    assert ended.state == "TIMEOUT" and ended.error == "no result within 10 s"
    assert machine.lapse(ended, later(99), 0.5) is ended
    waiting = machine.release(held, 1, later(3))
    assert machine.lapse(waiting, later(10), 0.5).state == "TIMEOUT"


def test_a_result_without_a_start_counts_as_started():
    done = machine.finish(machine.assign(task(), "ada", "t", NOON), 1, {"x": 1}, later(2))
    assert done.state == "COMPLETED" and done.execution_seconds == 0 and done.result_data == {"x": 1}


@pytest.mark.parametrize("attempt", [0, 2, 99])
def test_a_stale_attempt_changes_nothing(attempt):
    held = running()
    for step in (
        lambda t: machine.start(t, attempt, NOON), lambda t: machine.accept(t, attempt, NOON),
        lambda t: machine.release(t, attempt, NOON), lambda t: machine.finish(t, attempt, 1, NOON),
        lambda t: machine.fail(t, attempt, "x", NOON, 0.5),
    ):  # fmt: skip
        with pytest.raises(StaleAttempt):
            step(held)


def test_a_token_says_of_which_attempt_it_is():
    first = machine.assign(task(), "ada", machine.token(task(), "x"), NOON)
    second = machine.assign(machine.release(first, 1, NOON), "bob", machine.token(first, "y"), NOON)
    assert (first.task_token, second.task_token) == ("1.x", "2.y")
    assert machine.outdated(second, first.task_token) and not machine.outdated(second, second.task_token)
    assert not machine.outdated(first, first.task_token) and not machine.outdated(second, "x")


def test_starting_and_accepting_twice_change_nothing():
    held = running()
    assert machine.start(held, 1, later(3)) is held
    accepted = machine.accept(held, 1, later(3))
    assert accepted.accepted and machine.accept(accepted, 1, later(4)) == accepted


@pytest.mark.parametrize(
    ("states", "after", "left"),
    [
        ({"a": "RUNNING", "b": "PENDING"}, "PENDING", ("a", "b")),
        ({"a": "COMPLETED", "b": "RUNNING"}, "PENDING", ("b",)),
        ({"a": "COMPLETED", "b": "COMPLETED"}, "PENDING", ()),
        ({"a": "COMPLETED", "b": "FAILED"}, "FAILED", ()),
        ({"a": "TIMEOUT", "b": "PENDING"}, "FAILED", ()),
        ({"a": "PENDING", "b": "CANCELLED"}, "FAILED", ()),
        ({}, "PENDING", ("a", "b")),
    ],
)
def test_dependencies(states, after, left):
    waiting = task(depends_on=("a", "b"), waiting_for=("a", "b"))
    found = machine.resolve(waiting, {name: TaskState(s) for name, s in states.items()}, later(1))
    assert found.state == after and found.waiting_for == left
    if after == "FAILED":
        assert found.reason.startswith("dependency ") and found.reason == found.error
    with pytest.raises(Conflict):
        machine.assign(waiting, "ada", "t", NOON)


def test_only_what_waits_can_move_in_the_queue():
    assert machine.prioritise(task(), 9, later(1)).priority == 9
    with pytest.raises(Conflict):
        machine.prioritise(running(), 9, NOON)


# ---- signs of life


def test_a_report_moves_no_deadline():
    held = running(timeout_seconds=10)
    told = machine.report(held, 1, later(4), progress=40, message="half of it")
    assert (told.progress, told.progress_message, told.heartbeat_at) == (40, "half of it", later(4))
    assert told.deadline == held.deadline == later(10) and told.state == "RUNNING" and told.extended_seconds == 0
    beat = machine.report(told, 1, later(5))
    assert beat.progress == 40 and beat.heartbeat_at == later(5) and beat.deadline == later(10)


def test_an_extension_moves_the_deadline_by_what_it_asks_for():
    held = machine.report(running(timeout_seconds=10, max_retries=0), 1, later(2), extend=30)
    held = machine.report(held, 1, later(3), extend=5)
    assert held.deadline == later(45) and held.extended_seconds == 35
    assert machine.lapse(held, later(44.9), 0.5) is held
    assert machine.lapse(held, later(45), 0.5).error == "no result within 45 s"


def test_no_try_lasts_longer_than_a_day():
    held = machine.report(running(timeout_seconds=3600), 1, later(2), extend=86_400 - 3600)
    with pytest.raises(Invalid) as error:
        machine.report(held, 1, later(3), extend=1)
    assert error.value.details["allowed_range"] == [0, 0]


def test_the_next_try_begins_with_its_own_time():
    held = machine.report(running(timeout_seconds=10), 1, later(2), progress=50, extend=30)
    again = machine.fail(held, 1, "broke", later(5), 0.5)
    assert (again.extended_seconds, again.progress, again.progress_message, again.heartbeat_at) == (0, None, "", None)
    second = machine.assign(machine.wake(again, later(9)), "bob", "t", later(9))
    assert second.deadline == later(19)


def test_a_first_sign_of_life_starts_what_was_only_assigned():
    told = machine.report(machine.assign(task(), "ada", "t", NOON), 1, later(1), progress=5)
    assert (
        told.state == "RUNNING"
        and told.started_at == later(1)
        and kind_of(task(state="ASSIGNED"), told) == "task.started"
    )


@pytest.mark.parametrize("attempt", [0, 2])
def test_a_stale_attempt_shows_no_sign_of_life(attempt):
    with pytest.raises(StaleAttempt):
        machine.report(running(), attempt, later(1))


# ---- what time alone does


def picked_up_by(seconds: float, **fields) -> Task:
    return machine.assign(task(**fields), "ada", "t", NOON, inbox="ada", pickup_seconds=seconds)


def test_a_task_that_is_not_picked_up_goes_back_and_spends_no_retry():
    waiting = picked_up_by(15, max_retries=0, timeout_seconds=60)
    assert waiting.due == later(15) and machine.lapse(waiting, later(14.9), 0.5) is waiting
    back = machine.lapse(waiting, later(15), 0.5)
    assert back.state == "PENDING" and back.retry_count == 0 and back.deadline == later(60) and back.ready
    assert (back.inbox, back.pickup_by, back.agent_id, back.task_token) == ("", None, "", "")
    assert kind_of(waiting, back) == "task.released"


def test_a_task_whose_time_is_over_before_it_is_picked_up_has_timed_out():
    waiting = picked_up_by(15, max_retries=0, timeout_seconds=10)
    assert waiting.due == later(10) and machine.lapse(waiting, later(10), 0.5).state == "TIMEOUT"


def test_who_picks_a_task_up_has_it_until_the_deadline():
    taken = machine.accept(picked_up_by(15, timeout_seconds=60), 1, later(3))
    assert taken.state == "RUNNING" and taken.accepted and taken.pickup_by is None and taken.due == later(60)


def test_an_agent_that_is_silent_for_too_long_has_lost_its_try():
    held = running(heartbeat_seconds=5, timeout_seconds=60, max_retries=1)  # it started at 1
    assert held.due == later(6) and machine.lapse(held, later(5.9), 0.5) is held
    held = machine.report(held, 1, later(4))
    assert held.due == later(9)
    again = machine.lapse(held, later(9), 0.5)
    assert again.state == "PENDING" and again.retry_count == 1 and again.error == "no heartbeat within 5 s"
    last = machine.lapse(held.model_copy(update={"retry_count": 1}), later(9), 0.5)
    assert last.state == "TIMEOUT" and last.error == "no heartbeat within 5 s"
    near = machine.report(held, 1, later(58))
    assert near.due == later(60) and machine.lapse(near, later(60), 0.5).error == "no result within 60 s"


@given(st.floats(0, 200), st.integers(0, 20), st.floats(0, 100), st.booleans())
def test_nothing_lapses_before_it_is_due(seconds, heartbeat, pickup, started):
    held = machine.assign(
        task(timeout_seconds=60, heartbeat_seconds=heartbeat), "ada", "t", NOON, inbox="ada", pickup_seconds=pickup
    )
    held = machine.accept(held, 1, later(1)) if started else held
    lapsed = machine.lapse(held, later(seconds), 0.5)
    assert (lapsed is held) == (later(seconds) < held.due)


# ---- workers of the village that end


def in_inbox(inbox: str = "pool/1", **fields) -> Task:
    return machine.accept(machine.assign(task(**fields), "pool", "t", NOON, inbox=inbox), 1, NOON)


def test_a_task_that_was_alone_when_its_worker_ended_has_failed():
    ended = machine.orphaned(in_inbox(max_retries=0), "pool/1", 1, later(2), 0.5)
    assert ended.state == "FAILED" and "worker ended" in ended.error
    again = machine.orphaned(in_inbox(max_retries=1), "pool/1", 1, later(2), 0.5)
    assert again.state == "PENDING" and again.retry_count == 1 and not again.suspect


def test_tasks_that_were_together_when_their_worker_ended_are_tried_alone():
    back = machine.orphaned(in_inbox(max_retries=0), "pool/1", 3, later(2), 0.5)
    assert back.state == "PENDING" and back.suspect and back.retry_count == 0 and back.ready
    second = machine.assign(back, "pool", "t", later(3), inbox="pool/2")
    assert second.suspect and machine.release(second, 2, later(4)).suspect  # it stays so until it has ended


def test_the_end_of_a_worker_is_nothing_to_others_tasks():
    for held in (in_inbox("pool/2"), task(), machine.finish(in_inbox(), 1, 1, later(1))):
        assert machine.orphaned(held, "pool/1", 1, later(2), 0.5) is held


# ---- anything in any order


class Life(RuleBasedStateMachine):
    """Anything may happen to a task in any order; what the table forbids must leave it as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.task = task(max_retries=2, timeout_seconds=5, heartbeat_seconds=2, depends_on=("a",), waiting_for=("a",))
        self.now = NOON
        self.before = self.task

    def move(self, step) -> None:
        self.before = self.task
        try:
            self.task = step(self.task)
        except Conflict:
            return
        if self.task == self.before:
            return
        kind = kind_of(self.before, self.task)
        event = changed(self.before, self.task)
        assert event.kind == kind and event.data["status"] == self.task.state and event.subject == self.task.task_id
        assert (kind in ENDED.values()) == (self.task.state in FINAL)
        assert (kind == "task.retry") == (self.task.retry_count > self.before.retry_count)
        assert (kind == "task.assigned") == (self.task.attempt > self.before.attempt)

    @rule(seconds=st.floats(0, 8))
    def time_passes(self, seconds):
        self.now += timedelta(seconds=seconds)

    @rule(
        agent=st.sampled_from(["ada", "bob"]),
        inbox=st.sampled_from(["", "ada", "ada/1"]),
        pickup=st.none() | st.floats(0, 9),
    )
    def assign(self, agent, inbox, pickup):
        self.move(lambda t: machine.assign(t, agent, f"token{t.attempt}", self.now, inbox=inbox, pickup_seconds=pickup))

    @precondition(lambda self: self.task.attempt > 0)
    @rule(
        back=st.integers(0, 1), what=st.sampled_from(["start", "accept", "release", "finish", "fail", "beat", "extend"])
    )
    def report(self, back, what):
        attempt = self.task.attempt - back
        held = self.task
        steps = {
            "start": lambda t: machine.start(t, attempt, self.now),
            "accept": lambda t: machine.accept(t, attempt, self.now),
            "release": lambda t: machine.release(t, attempt, self.now),
            "finish": lambda t: machine.finish(t, attempt, {"x": 1}, self.now),
            "fail": lambda t: machine.fail(t, attempt, "no", self.now, 0.5),
            "beat": lambda t: machine.report(t, attempt, self.now, progress=50),
            "extend": lambda t: machine.report(t, attempt, self.now, extend=3),
        }
        self.move(steps[what])
        assert back == 0 or self.task == held  # a stale attempt never changes anything

    @rule()
    def expire(self):
        self.move(lambda t: machine.lapse(t, self.now, 0.5))

    @rule()
    def wake(self):
        self.move(lambda t: machine.wake(t, self.now))

    @rule(together=st.integers(1, 2))
    def its_worker_ends(self, together):
        self.move(lambda t: machine.orphaned(t, "ada/1", together, self.now, 0.5))

    @rule(state=st.sampled_from([TaskState.RUNNING, TaskState.COMPLETED, TaskState.COMPLETED, TaskState.FAILED]))
    def its_dependency_is(self, state):
        self.move(lambda t: machine.resolve(t, {"a": state}, self.now))

    @rule(priority=st.integers(1, 10))
    def prioritise(self, priority):
        self.move(lambda t: machine.prioritise(t, priority, self.now))

    @rule()
    def cancel(self):
        self.move(lambda t: machine.cancel(t, "enough", self.now))

    @invariant()
    def what_is_finished_stays_finished(self):
        assert self.before.state not in FINAL or self.task == self.before

    @invariant()
    def attempts_only_grow(self):
        assert self.task.attempt >= self.before.attempt and self.task.retry_count >= self.before.retry_count

    @invariant()
    def retries_are_within_the_limit(self):
        assert self.task.retry_count <= self.task.max_retries

    @invariant()
    def a_deadline_moves_only_for_an_extension_within_a_try(self):
        b, t = self.before, self.task
        if b.deadline and t.deadline and b.retry_count == t.retry_count:
            moved = (t.deadline - b.deadline).total_seconds()
            assert moved == pytest.approx(t.extended_seconds - b.extended_seconds)

    @invariant()
    def nobody_has_what_waits(self):
        t = self.task
        if t.state is TaskState.PENDING:
            assert not (t.agent_id or t.task_token or t.inbox or t.accepted or t.pickup_by or t.started_at)
            assert t.progress is None and t.heartbeat_at is None and t.assigned_at is None

    @invariant()
    def it_stands_in_the_sets_of_its_state(self):
        t = self.task
        sets = {key.rpartition("}:task.")[2].partition(":")[0] for key in entries(t)}
        assert ("ready" in sets) == t.ready and ("held" in sets) == (t.state in HELD)
        assert ("inbox" in sets) == bool(t.state in HELD and t.inbox) and ("delayed" in sets) == bool(t.not_before)
        assert ("deadline" in sets) == bool(t.due) and ("waiting" in sets) == bool(t.waiting_for)
        assert t.state not in FINAL or sets == {"list"}

    @invariant()
    def the_record_is_whole(self):
        t = self.task
        assert bool(t.agent_id and t.task_token) == (t.state in HELD) or t.state in FINAL
        assert (t.deadline is not None) or t.state not in HELD
        assert t.not_before is None or t.state == "PENDING"
        assert (t.completed_at is not None) == (t.state in FINAL)
        assert not t.accepted or t.state == "RUNNING"
        assert Task.model_validate_json(t.model_dump_json()) == t


Life.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase
