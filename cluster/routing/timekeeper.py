"""What time alone does to tasks and agents, for the router: deadlines, waits, rests, offers that ran out."""

import asyncio
import logging
import os
import random
from datetime import timedelta
from typing import TYPE_CHECKING

from cluster.aside import insist
from cluster.clock import Clock
from cluster.errors import Unavailable
from cluster.presence import BEAT_SECONDS, Presence
from cluster.routing.table import Entry, in_village
from cluster.tasks import machine
from cluster.tasks.model import Task
from cluster.tasks.steps import Step

if TYPE_CHECKING:
    from cluster.routing.router import Router

log = logging.getLogger("village.router")
TICK_SECONDS = 0.25
SLOW_TICK_SECONDS = 1.0  # between two tries of tasks that nobody may have
RANK_SECONDS = 60.0
ALONE_SECONDS = 3 * BEAT_SECONDS
DEAF_SECONDS = 2.0  # between two looks: longer, and nobody's silence says anything
OFFER_SECONDS = 6.0  # how long an offer counts; who makes one renews it in a third of that
AT_ONCE = 500  # tasks of one commit


class Timekeeper:
    """Of one router."""

    def __init__(self, router: "Router", clock: Clock) -> None:
        self.router, self.clock = router, clock
        self.random = random.Random()
        self.looked = clock()  # the last time that all was looked at, so that the store was there
        self.company = clock()  # the last time that another router was seen to live

    async def run(self) -> None:
        """For ever."""
        loop, router = asyncio.get_running_loop(), self.router
        slow = ranked = loop.time()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                await self.tick()
                if loop.time() - slow >= SLOW_TICK_SECONDS:
                    slow = loop.time()
                    await router.fill(router.backlog.lines)  # without room nobody asks, but the beat says what waits
                    router.wake(*router.backlog.unpark())
                    await self._adopt()
            except Unavailable:
                log.warning("the store does not answer")
            if loop.time() - ranked >= RANK_SECONDS:
                ranked = loop.time()
                router.table.rank_anew(self.clock())

    async def tick(self) -> None:
        """Look once."""
        at, router = self.clock(), self.router
        router.wake(*router.table.rested(at))
        if abs((at - self.looked).total_seconds()) > DEAF_SECONDS:  # the store was away, or we, or the clock was set
            router.table.prolong(at + timedelta(seconds=OFFER_SECONDS))
        for entry, inbox in router.table.withdrawn(at):
            if in_village(entry.agent.agent_id, inbox):
                router.aside.spawn(insist(lambda e=entry, i=inbox: self._orphaned(e, i)))
        if router.moved:
            for agent_id, standing in (await router.trust.standings(sorted(router.moved))).items():
                router.moved.discard(agent_id)
                router.table.stands(agent_id, standing, at)
        await self._all_until(at.timestamp(), "delayed", lambda t: machine.wake(t, self.clock()))
        await self._all_until(at.timestamp(), "deadline", self._lapse)
        self.looked = at

    async def _adopt(self) -> None:
        """Take over what another router gave out that has ended since: nobody delivers it, nor counts it here."""
        router, at = self.router, self.clock()
        beat = await router.store.find(Presence, router.NAME)
        if beat is not None and (beat.pid, beat.host) != (os.getpid(), os.uname().nodename):
            self.company = at
        if (at - self.company).total_seconds() < ALONE_SECONDS:
            return
        ids = await router.store.ids(Task, "deadline")
        known = {attempt.rpartition(".")[0] for entry in router.table.entries.values() for attempt in entry.held}
        long_ago = at - timedelta(seconds=ALONE_SECONDS)
        found = await router.store.load_many(Task, [task_id for task_id in ids if task_id not in known])
        await router.recover_held(
            [(task, version) for task, version in found if task.assigned_at and task.assigned_at < long_ago]
        )

    def _lapse(self, task: Task) -> Task:
        return machine.lapse(task, self.clock(), self.random.random())

    async def _all_until(self, now: float, index: str, step: Step) -> None:
        store, steps = self.router.store, self.router.steps
        while ids := await store.ids(Task, index, high=now, limit=AT_ONCE):
            if not await steps.many(await store.load_many(Task, ids), step) or len(ids) < AT_ONCE:
                return

    async def _orphaned(self, entry: Entry, inbox: str) -> None:
        """A worker of the village is gone: what it had taken goes back, and is tried alone if it was not alone."""
        store, steps = self.router.store, self.router.steps
        attempts = {attempt_id for attempt_id, held_in in entry.held.items() if held_in == inbox}
        found = await store.load_many(Task, [attempt_id.rpartition(".")[0] for attempt_id in attempts])
        found = [(task, version) for task, version in found if task.attempt_id in attempts]
        inside = set(await store.ids(Task, "inbox", inbox))
        untouched = [(task, version) for task, version in found if task.task_id in inside]
        await steps.many(untouched, lambda t: machine.release(t, t.attempt, self.clock()))
        taken = [(task, version) for task, version in found if task.task_id not in inside]
        await steps.many(taken, lambda t: machine.orphaned(t, inbox, len(taken), self.clock(), self.random.random()))
