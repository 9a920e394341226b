"""The scheduler: makes the task of each schedule whose time has come.

Moving `next_run_at` on and making the task are one commit on the schedule's version, and the task's id follows from the
time, so each time fires once however many schedulers run, and whichever of them is killed.
"""

import asyncio
import logging
from datetime import datetime

from cluster.clock import Clock, utc_now
from cluster.errors import BadSchedule, Conflict, Unavailable, VillageError
from cluster.presence import BEAT_SECONDS, beat
from cluster.settings import Settings
from cluster.store import Store, Write
from cluster.tasks.model import Task
from cluster.tasks.service import Tasks
from cluster.workflows.schedules import machine
from cluster.workflows.schedules.machine import told
from cluster.workflows.schedules.model import Firing, Outcome, Schedule, firing_id, task_id
from cluster.workflows.schedules.service import RACES, outcomes, task_of
from cluster.workflows.submitting import check_author

log = logging.getLogger("village.schedules")
TICK_SECONDS = 0.5  # how late a run may be, and how soon a new schedule is seen
AT_ONCE = 32


class Scheduler:
    """See the module. `run` returns only when it is cancelled."""

    NAME = "schedules"

    def __init__(self, store: Store, tasks: Tasks, clock: Clock = utc_now) -> None:
        self.store, self.tasks, self.clock = store, tasks, clock
        self.handled = 0

    async def run(self) -> None:
        """Look at the clock for ever."""
        beaten = -BEAT_SECONDS
        while True:
            try:
                while await self.step() == AT_ONCE:
                    pass  # more of them may be due
                if (now := asyncio.get_running_loop().time()) - beaten >= BEAT_SECONDS:
                    beaten = now
                    await beat(self.store, self.NAME, self.clock(), {"handled": self.handled})
            except Unavailable:
                log.warning("the store does not answer")
            await asyncio.sleep(TICK_SECONDS)

    async def step(self) -> int:
        """Deal with one batch of schedules whose time has come, the most overdue first; how many that were."""
        now = self.clock()
        ids = await self.store.ids(Schedule, "due", high=now.timestamp(), limit=AT_ONCE)
        done = await asyncio.gather(*(self._deal_with(schedule_id) for schedule_id in ids), return_exceptions=True)
        for schedule_id, failed in zip(ids, done, strict=True):
            if isinstance(failed, Unavailable):
                raise failed
            if failed is not None:
                log.error("%s could not be dealt with", schedule_id, exc_info=failed)
        dealt_with = done.count(None)
        self.handled += dealt_with
        return dealt_with

    async def _deal_with(self, schedule_id: str) -> None:
        for _ in range(RACES):
            if await self._dealt_with(schedule_id):
                return
        raise Conflict("the schedule is changed by too many at once", schedule_id=schedule_id)

    async def _dealt_with(self, schedule_id: str) -> bool:
        """Whether nothing is left to do; else somebody was faster."""
        (schedule, version), at = await self.store.load(Schedule, schedule_id), self.clock()
        if schedule is None or schedule.next_run_at is None or schedule.next_run_at > at:
            return True
        try:
            what = machine.due(schedule.next_run_at, at, lambda after: machine.following(schedule, after))
        except BadSchedule as error:  # a zone that a newer time zone database does not have any more
            return await self._pause(schedule, version, error.message, at)
        firings = [machine.missed(schedule, what, at)] if what.missed else []
        firing, task = None, []
        if what.fire is not None:
            firing, task = await self._fire(schedule, what.fire, at)
            firings.append(firing)
        after = machine.moved(schedule, what, firing, at)
        return await self.store.commit(
            Write(schedule, after, version), *await outcomes(self.store, after, firings), *task
        )

    async def _fire(self, schedule: Schedule, when: datetime, at: datetime) -> tuple[Firing, list[Write]]:
        """The outcome for one time, with the task if it makes one."""
        run = Firing(
            firing_id=firing_id(schedule.schedule_id, when), schedule_id=schedule.schedule_id, scheduled_for=when,
            outcome=Outcome.SKIPPED, created_at=at,
        )  # fmt: skip
        last = await self.store.find(Task, schedule.last_task_id) if schedule.last_task_id else None
        if why := machine.overlap(last):
            return run.model_copy(update={"reason": why}), []
        try:
            await check_author(self.store, schedule.author)
            task = await task_of(self.tasks, schedule, task_id(schedule.schedule_id, when))
        except Unavailable:
            raise
        except VillageError as error:
            return run.model_copy(update={"reason": error.message}), []
        except Exception:
            # The others' times come, too: this one says that it was skipped, and why.
            log.exception("%s cannot be fired", schedule.schedule_id)
            return run.model_copy(update={"reason": "an unexpected error; it is in the log"}), []
        fired = {"outcome": Outcome.FIRED, "task_id": task_id(schedule.schedule_id, when)}
        return run.model_copy(update=fired), [task]

    async def _pause(self, schedule: Schedule, version: str, reason: str, at: datetime) -> bool:
        after = schedule.model_copy(update={"active": False, "next_run_at": None, "updated_at": at})
        log.error("%s is paused: %s", schedule.schedule_id, reason)
        return await self.store.commit(Write(schedule, after, version, told(after, "schedule.paused", at)))


async def run_schedules(store: Store, settings: Settings) -> None:
    """The loop that the village runs."""
    await Scheduler(store, Tasks(store)).run()
