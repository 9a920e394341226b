"""A worker of the village: takes tasks from its inbox, runs their callables, and writes the results itself.

The router puts tasks into the inbox as far as the worker's offer goes. While tasks are short the worker offers room for
many, so that one round trip to the store carries many of them; with long ones it holds one at a time, and the others
are free for its neighbours. A callable cannot be stopped from outside, so a worker whose callable goes on after its
task is over ends its own process, and is started again.
"""

import asyncio
import logging
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic_core import from_json, to_json

from cluster.aside import insist
from cluster.clock import Clock, utc_now
from cluster.errors import Conflict, Unavailable, VillageError
from cluster.store import Store, Write
from cluster.tasks import machine
from cluster.tasks.events import changed
from cluster.tasks.model import Task, TaskState
from cluster.workers.work import Job, Work

log = logging.getLogger("village.worker")
OFFER_SECONDS = 6.0
RENEW_SECONDS = 2.0
LOOK_SECONDS = 1.0  # between two looks at what a running callable's task has become
LOST_SECONDS = 2.0  # between two looks for tasks that were taken by a call whose answer never came
GRACE_SECONDS = 5.0  # for a callable to notice that it is over
AHEAD_SECONDS = 0.05  # of work that a worker takes in advance
MOST_AHEAD = 256
FIRST_GUESS_SECONDS = 1.0  # how long a callable takes that nobody has seen at work: one at a time
MAX_RESULT_BYTES = 16 << 20


@dataclass
class Ended:
    """How a callable ended."""

    begun: datetime
    seconds: float
    result: Any = None
    error: str | None = None


def run(work: Work, task: Task, job: Job, begun: datetime) -> Ended:
    """Call it, in this thread. Nothing that it raises leaves, and only what JSON can say is a result."""
    at = time.perf_counter()
    try:
        written = to_json(work(task.input_data, job))
        if len(written) > MAX_RESULT_BYTES:
            raise ValueError(f"the result is longer than {MAX_RESULT_BYTES} bytes")
        return Ended(begun, time.perf_counter() - at, from_json(written))
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {error}"[:2000].encode(errors="replace").decode()
        return Ended(begun, time.perf_counter() - at, error=said)


def ahead(seconds: float) -> int:
    """How many tasks of this mean time a worker holds."""
    return max(1, min(MOST_AHEAD, int(AHEAD_SECONDS / max(seconds, 1e-6))))


class PoolWorker:
    """One process's loop. `name` is its own among the agent's workers, and stays the same when it is started again."""

    def __init__(
        self, store: Store, agent_id: str, name: str, callables: Mapping[str, Work], clock: Clock = utc_now
    ) -> None:
        self.store, self.clock = store, clock
        self.agent_id, self.inbox = agent_id, f"{agent_id}/{name}"
        self.callables = callables
        self.seconds: dict[str, float] = {}  # mean of each capability, the last ones counting most
        self.credit = 1
        self.jobs: dict[str, Job] = {}
        self.done = 0
        self.retired = False
        self.random = random.Random()

    async def run(self) -> None:
        """Take back what a former process of this name had in hand, then work until it is retired."""
        await insist(self.recover)
        offering = asyncio.create_task(self._offer_on())
        try:
            await self._work()
        finally:
            offering.cancel()

    def retire(self) -> None:
        """Take nothing more, finish what is in hand, and return from `run`."""
        self.retired = True
        self.credit = 0

    async def recover(self) -> None:
        """What was in hand when the last process ended: tried again alone, or failed if it was alone already.

        What still lies in the inbox was in nobody's hand, and may have come just now.
        """
        held = await self._taken()
        for task in held:
            await self._change(task.task_id, lambda t: self._orphaned(t, len(held)))

    async def _taken(self) -> list[Task]:
        """Tasks that this worker has by their records, and that are no longer in its inbox."""
        held = await self.store.ids(Task, "held", self.agent_id)
        inside = set(await self.store.ids(Task, "inbox", self.inbox))  # in this order: whoever comes comes into both
        found = await self.store.many(Task, [task_id for task_id in held if task_id not in inside])
        return [task for task in found if self._mine(task)]

    async def _recover_lost(self) -> None:
        """With nothing in hand: what was taken out of the inbox by a call whose answer never came goes back."""
        for task in await self._taken():
            await self._change(task.task_id, lambda t, n=task.attempt: machine.release(t, n, self.clock()))

    def _orphaned(self, task: Task, together: int) -> Task:
        return machine.orphaned(task, self.inbox, together, self.clock(), self.random.random())

    async def _offer_on(self) -> None:
        while True:
            await self._offer()
            await asyncio.sleep(RENEW_SECONDS)

    async def _offer(self) -> None:
        offer = {"agent_id": self.agent_id, "inbox": self.inbox, "credit": self.credit, "seconds": OFFER_SECONDS}
        try:
            await self.store.signal({"offer": offer})
        except Unavailable:
            log.warning("the store does not answer")

    async def _work(self) -> None:
        looked = time.monotonic()
        while not (self.retired and await insist(self._empty)):
            try:
                found = await self.store.take(Task, "inbox", self.inbox, limit=MOST_AHEAD, wait_seconds=RENEW_SECONDS)
                if found:
                    await self._batch(found)
                if time.monotonic() - looked > LOST_SECONDS:
                    await self._recover_lost()
                    looked = time.monotonic()
            except Unavailable:
                await asyncio.sleep(0.2)

    async def _empty(self) -> bool:
        """Whether the router knows that nothing more is taken here, and nothing is left."""
        await self._offer()
        ids = await self.store.ids(Task, "held", self.agent_id)
        return not any(self._mine(task) for task in await self.store.many(Task, ids))

    async def _batch(self, found: Sequence[tuple[Task, str]]) -> None:
        mine = [(task, v) for task, v in found if self._mine(task)]
        left, read_at = mine, time.monotonic()
        while left:
            if time.monotonic() - read_at > LOOK_SECONDS:  # the ones before took their time: are these still wanted?
                left, read_at = await self._still(left), time.monotonic()
            # As many in one go as are short: the thread is entered, and the store written to, once for all of them.
            size = min(len(left), ahead(self._expected(left[0][0])))
            now, left = left[:size], left[size:]
            self.jobs = {task.task_id: Job(task.task_id, task.attempt, task.metadata) for task, _ in now}
            tasks = [task for task, _ in now]
            working = asyncio.ensure_future(asyncio.to_thread(self._run_all, tasks))
            await self._watch(working, tasks)
            await self._tell(now, working.result())
        wanted = min((ahead(seconds) for seconds in self.seconds.values()), default=1)
        if wanted != self.credit and not self.retired:
            self.credit = wanted
            await self._offer()

    def _mine(self, task: Task) -> bool:
        return task.inbox == self.inbox and task.state is TaskState.RUNNING

    async def _still(self, tasks: Sequence[tuple[Task, str]]) -> list[tuple[Task, str]]:
        found = await insist(lambda: self.store.load_many(Task, [task.task_id for task, _ in tasks]))
        attempts = {task.attempt_id for task, _ in tasks}
        return [(task, version) for task, version in found if self._mine(task) and task.attempt_id in attempts]

    def _expected(self, task: Task) -> float:
        return self.seconds.get(task.capability_required, FIRST_GUESS_SECONDS)

    def _run_all(self, tasks: Sequence[Task]) -> list[Ended | None]:
        ended: list[Ended | None] = []
        for task in tasks:
            work, job = self.callables.get(task.capability_required), self.jobs[task.task_id]
            if job.over:
                ended.append(None)
            elif work is None:
                ended.append(Ended(self.clock(), 0.0, error=f"no callable for {task.capability_required} here"))
            else:
                ended.append(run(work, task, job, self.clock()))
        return ended

    async def _watch(self, working: asyncio.Task[Any], tasks: Sequence[Task]) -> None:
        """Wait for the callables; meanwhile tell their progress, and end those whose task is over."""
        over_since: float | None = None
        while not (await asyncio.wait([working], timeout=LOOK_SECONDS))[0]:
            try:
                await self._look(tasks)
            except Unavailable:
                continue
            if not all(job.over for job in self.jobs.values()):
                over_since = None
            elif over_since is None:
                over_since = time.monotonic()
            elif time.monotonic() - over_since > GRACE_SECONDS:
                log.warning(
                    "a callable goes on after its task is over: ending this process", extra={"inbox": self.inbox}
                )
                os._exit(1)

    async def _look(self, tasks: Sequence[Task]) -> None:
        now = {task.task_id: task for task in await self.store.many(Task, [task.task_id for task in tasks])}
        for task in tasks:
            job, stands = self.jobs[task.task_id], now.get(task.task_id)
            if stands is None or stands.attempt != task.attempt or stands.state is not TaskState.RUNNING:
                job.end()
            elif (told := job.progress_told) is not None or task.heartbeat_seconds:
                percent, message = told or (None, "")
                await self._change(
                    task.task_id,
                    lambda t, n=task.attempt, p=percent, m=message: machine.report(
                        t, n, self.clock(), progress=p, message=m
                    ),
                )

    async def _tell(self, tasks: Sequence[tuple[Task, str]], ended: Sequence[Ended | None]) -> None:
        writes: list[Write] = []
        steps: list[tuple[Task, Ended]] = []
        for (task, version), end in zip(tasks, ended, strict=True):
            if end is None:
                continue
            mean = self.seconds.get(task.capability_required)
            self.seconds[task.capability_required] = end.seconds if mean is None else 0.8 * mean + 0.2 * end.seconds
            after = self._ended(task, task.attempt, end)
            writes.append(Write(task, after, version, changed(task, after)))
            steps.append((task, end))
        won = await insist(lambda: self.store.commit_each(writes))
        self.done += sum(won)
        for (task, end), written in zip(steps, won, strict=True):
            if not written:  # its progress was told meanwhile, or it is over
                await self._change(task.task_id, lambda t, n=task.attempt, e=end: self._ended(t, n, e))

    def _ended(self, task: Task, attempt: int, end: Ended) -> Task:
        at = max(self.clock(), end.begun + timedelta(seconds=end.seconds))
        if task.attempt == attempt and task.started_at and task.started_at < end.begun:
            task = task.model_copy(update={"started_at": end.begun})  # until then it was in the inbox
        if end.error is None:
            return machine.finish(task, attempt, end.result, at)
        return machine.fail(task, attempt, end.error, at, self.random.random())

    async def _change(self, task_id: str, step: Any) -> None:
        try:
            await insist(lambda: self.store.change(Task, task_id, step, changed))
        except (Conflict, VillageError) as error:
            log.info("%s: %s", task_id, error)
