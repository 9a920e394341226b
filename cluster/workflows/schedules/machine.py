"""What is due of a schedule, and the schedule after it. Pure.

paused <-> active: waits for next_run_at -> fired, or skipped -> the next next_run_at
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cluster.events import Event
from cluster.tasks.model import FINAL, Task
from cluster.workflows.schedules.cron import next_run
from cluster.workflows.schedules.model import Firing, Outcome, Schedule, firing_id

LATE = timedelta(hours=1)  # a run that is later than this is not made up for


@dataclass(frozen=True)
class Due:
    """`missed` is the first time that nobody was there for, `fire` the time to fire for now, `then` the one after."""

    missed: datetime | None
    fire: datetime | None
    then: datetime | None


def due(first: datetime, at: datetime, following: Callable[[datetime], datetime | None]) -> Due:
    """What is to be done at `at` where the next run was `first`: the latest run at most, and only if not too late."""
    latest = None
    then: datetime | None = first if first >= at - LATE else following(at - LATE)
    while then is not None and then <= at:
        latest, then = then, following(then)
    return Due(missed=None if latest == first else first, fire=latest, then=then)


def following(schedule: Schedule, after: datetime) -> datetime | None:
    """The next run after `after`, and after whatever was dealt with: a clock that is set back repeats nothing."""
    after = max(after, schedule.through) if schedule.through else after
    return next_run(schedule.cron_expression, schedule.timezone, after)


def overlap(task: Task | None) -> str:
    """Why the task of the run before keeps the next one from being made; empty when it does not."""
    if task is None or task.state in FINAL:
        return ""
    return f"the task of the run before, {task.task_id}, is {task.state} still"


def missed(schedule: Schedule, what: Due, at: datetime) -> Firing:
    """The record of runs that nobody was there for."""
    assert what.missed is not None
    until = f"before {what.fire.isoformat()}" if what.fire else f"up to {(at - LATE).isoformat(timespec='seconds')}"
    return Firing(
        firing_id=firing_id(schedule.schedule_id, what.missed), schedule_id=schedule.schedule_id,
        outcome=Outcome.SKIPPED, scheduled_for=what.missed, created_at=at,
        reason=f"missed, as was every other run {until}: no scheduler ran",
    )  # fmt: skip


def moved(schedule: Schedule, what: Due, firing: Firing | None, at: datetime) -> Schedule:
    """The schedule after what was due: `firing` is the outcome for `what.fire`."""
    fired = firing is not None and firing.outcome is Outcome.FIRED
    update: dict[str, Any] = {
        "next_run_at": what.then, "through": what.fire or at - LATE, "updated_at": at,
        "runs_fired": schedule.runs_fired + fired,
        "runs_skipped": schedule.runs_skipped + (what.missed is not None) + (firing is not None and not fired),
    }  # fmt: skip
    if fired and firing is not None:
        update |= {"last_run_at": at, "last_task_id": firing.task_id}
    return schedule.model_copy(update=update)


def by_hand(schedule: Schedule, task_id: str, at: datetime) -> Schedule:
    """The schedule after a run that somebody asked for; the clock's runs stay as they are."""
    update = {
        "last_run_at": at, "last_task_id": task_id, "runs_fired": schedule.runs_fired + 1, "updated_at": at,
    }  # fmt: skip
    return schedule.model_copy(update=update)


def changed(schedule: Schedule, update: dict[str, Any], at: datetime) -> Schedule:
    """The schedule with some fields changed; what it waits for follows from them. Raises `BadSchedule`."""
    after = schedule.model_copy(update=update)
    if after == schedule:
        return schedule
    clock = ("cron_expression", "timezone", "active")
    if any(getattr(after, name) != getattr(schedule, name) for name in clock):
        after = after.model_copy(update={"next_run_at": following(after, at) if after.active else None})
    return after.model_copy(update={"updated_at": at})


def kind_of(before: Schedule, after: Schedule) -> str:
    """The name of a change that somebody made."""
    if before.active != after.active:
        return "schedule.resumed" if after.active else "schedule.paused"
    return "schedule.updated"


def told(schedule: Schedule, kind: str, at: datetime, firing: Firing | None = None) -> Event:
    """An event about a schedule, or about one run of it."""
    data: dict[str, Any] = {
        "schedule_id": schedule.schedule_id, "client_id": schedule.client_id, "name": schedule.name,
        "cron_expression": schedule.cron_expression, "timezone": schedule.timezone, "active": schedule.active,
        "next_run_at": schedule.next_run_at.isoformat() if schedule.next_run_at else None,
    }  # fmt: skip
    if firing is not None:
        at_clock = firing.scheduled_for
        data |= {
            "run_id": firing.firing_id, "task_id": firing.task_id, "reason": firing.reason,
            "scheduled_for": at_clock.isoformat() if at_clock else None,
        }  # fmt: skip
    return Event(kind=kind, subject=schedule.schedule_id, owner=schedule.author.owner, at=at, data=data)
