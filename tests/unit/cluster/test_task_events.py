from datetime import timedelta

import pytest

from cluster.clock import utc_now
from cluster.tasks import machine
from cluster.tasks.events import OUTCOMES, changed, kind_of
from cluster.tasks.model import Task

NOON = utc_now()
LATER = NOON + timedelta(seconds=2)


def task(**fields) -> Task:
    made = {
        "task_id": "task_1", "owner": "user_1", "client_id": "c", "task_type": "t", "capability_required": "x:v1",
        "created_at": NOON, "updated_at": NOON, "timeout_seconds": 1,
    }  # fmt: skip
    return Task(**made | fields)


NEW = task(max_retries=1)
ASSIGNED = machine.assign(NEW, "ada", "token", NOON)
RUNNING = machine.start(ASSIGNED, 1, NOON)
DELAYED = machine.fail(RUNNING, 1, "no", NOON, 0.5)
LAST = RUNNING.model_copy(update={"retry_count": 1})
WAITING = task(waiting_for=("a", "b"))

TRANSITIONS = [
    (None, NEW, "task.created"),
    (NEW, ASSIGNED, "task.assigned"),
    (ASSIGNED, RUNNING, "task.started"),
    (RUNNING, machine.accept(RUNNING, 1, NOON), "task.accepted"),
    (ASSIGNED, machine.release(ASSIGNED, 1, NOON), "task.released"),
    (RUNNING, machine.release(RUNNING, 1, NOON), "task.released"),
    (RUNNING, machine.finish(RUNNING, 1, {}, LATER), "task.completed"),
    (RUNNING, DELAYED, "task.retry"),
    (RUNNING, machine.lapse(RUNNING, LATER, 0.5), "task.retry"),
    (DELAYED, machine.wake(DELAYED, LATER), "task.ready"),
    (LAST, machine.fail(LAST, 1, "no", NOON, 0.5), "task.failed"),
    (LAST, machine.lapse(LAST, LATER, 0.5), "task.timeout"),
    (NEW, machine.cancel(NEW, "why", NOON), "task.cancelled"),
    (RUNNING, machine.cancel(RUNNING, "why", NOON), "task.cancelled"),
    (NEW, machine.prioritise(NEW, 9, NOON), "task.updated"),
    (WAITING, machine.resolve(WAITING, {"a": machine.TaskState.COMPLETED}, NOON), "task.ready"),
    (WAITING, machine.resolve(WAITING, {"a": machine.TaskState.FAILED}, NOON), "task.failed"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "kind"), TRANSITIONS, ids=[f"{t[2]}{n}" for n, t in enumerate(TRANSITIONS)]
)
def test_every_transition_has_its_event(before, after, kind):
    event = changed(before, after)
    assert event.kind == kind_of(before, after) == kind and event.owner == "user_1" and event.at == after.updated_at
    assert event.data["agent_id"] == ((before.agent_id if before else "") or after.agent_id)
    assert ("outcome" in event.data) == (kind in OUTCOMES)


@pytest.mark.parametrize(
    ("before", "after", "outcome", "seconds"),
    [
        (RUNNING, machine.finish(RUNNING, 1, {}, LATER), "COMPLETED", 2.0),
        (RUNNING, DELAYED, "FAILED", 0.0),
        (RUNNING, machine.lapse(RUNNING, LATER, 0.5), "TIMEOUT", 2.0),
        (LAST, machine.lapse(LAST, LATER, 0.5), "TIMEOUT", 2.0),
        (WAITING, machine.resolve(WAITING, {"a": machine.TaskState.FAILED}, NOON), "FAILED", None),
    ],
)
def test_an_outcome_says_what_the_ledger_needs(before, after, outcome, seconds):
    data = changed(before, after).data
    assert (data["outcome"], data["execution_time_seconds"], data["timeout_seconds"]) == (outcome, seconds, 1)


def test_a_try_that_nobody_ran_is_nobodys_outcome():
    # No agent answered until the deadline: nothing that any of them did.
    waiting = machine.release(ASSIGNED, 1, NOON)
    event = changed(waiting, machine.lapse(waiting, LATER, 0.5))
    assert event.kind == "task.retry" and event.data["agent_id"] == ""
