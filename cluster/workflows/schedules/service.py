"""What a principal may do with schedules."""

from collections.abc import Sequence
from typing import Any

from cluster.clock import Clock, utc_now
from cluster.errors import Conflict, ScheduleNotFound
from cluster.identity.model import Principal
from cluster.ids import new_id
from cluster.store import Page, Store, Write
from cluster.tasks.model import Task
from cluster.tasks.service import Tasks, TaskSpec
from cluster.workflows.model import Author, shelf
from cluster.workflows.schedules import cron, machine
from cluster.workflows.schedules.machine import told
from cluster.workflows.schedules.model import ACTIVE, PAUSED, Firing, Outcome, Schedule
from cluster.workflows.submitting import check_author, submission

MAX_PER_OWNER = 1000
KEEP = 1000  # runs of a schedule that are remembered
RACES = 100


class Schedules:
    """Schedule use cases. `who` has its own schedules, an admin everybody's; another's is a `ScheduleNotFound`."""

    def __init__(self, store: Store, tasks: Tasks, clock: Clock = utc_now) -> None:
        self.store, self.tasks, self.clock = store, tasks, clock

    async def create(self, who: Principal, **fields: Any) -> Schedule:
        """`fields` are those of `Schedule` that its author gives. Raises `BadSchedule`, and as `Tasks.submit`."""
        at = self.clock()
        cron.check(fields["cron_expression"], fields["timezone"])
        schedule = Schedule(
            schedule_id=new_id("sched"), author=Author.of(who), created_at=at, updated_at=at, **fields
        )  # fmt: skip
        await self.tasks.prepare(who, [spec_of(schedule)])
        if await self.store.count(Schedule, "list", *shelf(_owner(who))) >= MAX_PER_OWNER:
            raise Conflict(f"an owner may have {MAX_PER_OWNER} schedules", limit=MAX_PER_OWNER)
        if schedule.active:
            schedule = schedule.model_copy(update={"next_run_at": machine.following(schedule, at)})
        return await self.store.create(schedule, told(schedule, "schedule.created", at))

    async def get(self, who: Principal, schedule_id: str) -> Schedule:
        """Raises `ScheduleNotFound`."""
        schedule = await self.store.find(Schedule, schedule_id)
        if schedule is None or not who.sees(schedule.author.owner):
            raise ScheduleNotFound(f"no schedule {schedule_id}", schedule_id=schedule_id)
        return schedule

    async def page(
        self, who: Principal, *, client_id: str = "", active: bool | None = None, offset: int = 0, limit: int = 50
    ) -> Page[Schedule]:
        """Newest first."""
        state = "" if active is None else ACTIVE if active else PAUSED
        return await self.store.page(Schedule, "list", *shelf(who, client_id, state), offset=offset, limit=limit)

    async def update(self, who: Principal, schedule_id: str, **fields: Any) -> Schedule:
        """Change what is given; `active` pauses and resumes. Raises as `create`, and `ScheduleNotFound`."""
        found = await self.get(who, schedule_id)
        wanted = found.model_copy(update=fields)
        cron.check(wanted.cron_expression, wanted.timezone)
        await self.tasks.prepare(wanted.author.acting_for(wanted.client_id), [spec_of(wanted)])
        at = self.clock()
        return await self.store.change(
            Schedule, schedule_id, lambda now: machine.changed(now, fields, at),
            lambda before, after: told(after, machine.kind_of(before, after), at),
        )  # fmt: skip

    async def delete(self, who: Principal, schedule_id: str) -> Schedule:
        """With the record of its runs; tasks stay. Raises `ScheduleNotFound`."""
        await self.get(who, schedule_id)
        for _ in range(RACES):
            schedule, version = await self.store.load(Schedule, schedule_id)
            if schedule is None:
                raise ScheduleNotFound(f"no schedule {schedule_id}", schedule_id=schedule_id)
            gone = Write(schedule, None, version, told(schedule, "schedule.deleted", self.clock()))
            ids = await self.store.ids(Firing, "list", schedule_id)
            runs = [Write(run, None, version) for run, version in await self.store.load_many(Firing, ids)]
            if await self.store.commit(gone, *runs):
                return schedule
        raise Conflict("the schedule is changed by too many at once", schedule_id=schedule_id)

    async def run_now(self, who: Principal, schedule_id: str) -> Task:
        """The task of a run that ignores the clock. Raises `ScheduleNotFound`; `Conflict` where it would overlap."""
        await self.get(who, schedule_id)
        for _ in range(RACES):
            schedule, version = await self.store.load(Schedule, schedule_id)
            if schedule is None:
                raise ScheduleNotFound(f"no schedule {schedule_id}", schedule_id=schedule_id)
            last = await self.store.find(Task, schedule.last_task_id) if schedule.last_task_id else None
            if why := machine.overlap(last):
                raise Conflict(why, schedule_id=schedule_id, task_id=schedule.last_task_id)
            await check_author(self.store, schedule.author)
            write, at = await task_of(self.tasks, schedule), self.clock()
            assert isinstance(write.after, Task)
            firing = Firing(
                firing_id=new_id("run"), schedule_id=schedule_id, outcome=Outcome.FIRED, task_id=write.after.task_id,
                reason=f"asked for by {who.username}", created_at=at,
            )  # fmt: skip
            after = machine.by_hand(schedule, write.after.task_id, at)
            if await self.store.commit(
                Write(schedule, after, version), write, *await outcomes(self.store, after, [firing])
            ):
                return write.after
        raise Conflict("the schedule is changed by too many at once", schedule_id=schedule_id)

    async def runs(
        self, who: Principal, schedule_id: str, outcome: Outcome | None = None, offset: int = 0, limit: int = 50
    ) -> Page[Firing]:
        """Newest first. Raises `ScheduleNotFound`."""
        await self.get(who, schedule_id)
        parts = [schedule_id, outcome] if outcome else [schedule_id]
        return await self.store.page(Firing, "list", *parts, offset=offset, limit=limit)


def _owner(who: Principal) -> Principal:
    return who.model_copy(update={"scopes": frozenset()})


def spec_of(schedule: Schedule) -> TaskSpec:
    """The task of a run."""
    return TaskSpec(**schedule.model_dump(include=set(TaskSpec.model_fields)))


async def task_of(tasks: Tasks, schedule: Schedule, task_id: str = "") -> Write:
    """The task of a run, in the name of the schedule's author."""
    who = schedule.author.acting_for(schedule.client_id)
    return await submission(tasks, who, spec_of(schedule), schedule.schedule_id, task_id)


async def outcomes(store: Store, schedule: Schedule, firings: Sequence[Firing]) -> list[Write]:
    """The writes of what became of some runs, and of forgetting as many old ones as are too many then."""
    which = schedule.schedule_id
    too_many = await store.count(Firing, "list", which) + len(firings) - KEEP
    old = await store.ids(Firing, "list", which, limit=too_many) if too_many > 0 else []
    forget = [Write(firing, None, version) for firing, version in await store.load_many(Firing, old)]
    events = [told(schedule, f"schedule.{firing.outcome}", firing.created_at, firing) for firing in firings]
    new = [Write(None, firing, event=event) for firing, event in zip(firings, events, strict=True)]
    return new + forget
