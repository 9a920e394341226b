"""Pull delivery over HTTP: polls that wait, woken by one reader of the stream per process.

A waiting poll costs no connection to Redis and no timer of its own there: one reader hears of all assignments, and one
writer offers the room of all polls, renewed while they wait. The router puts tasks into the agent's inbox as far as the
offer goes; a poll takes them out, which only one of several can do, and commits that the agent has them. Whoever is
killed in between has taken nothing: a task that nobody accepted goes back to the queue after `router.PICKUP_SECONDS`.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from cluster.aside import Aside, insist
from cluster.clock import Clock, utc_now
from cluster.errors import Conflict, NotFound, Unavailable
from cluster.store import Store, Write
from cluster.tasks import machine
from cluster.tasks.events import changed
from cluster.tasks.model import HELD, Task, TaskState
from cluster.workers.model import Agent

log = logging.getLogger("village.pulling")
OFFER_SECONDS = 6.0  # how long an offer counts without another
RENEW_SECONDS = 2.0
SHORTEST_SECONDS = 0.3  # of a poll: an offer has to reach the router, and its answer to come back
LINGER_SECONDS = 5.0  # the reader stays so long after the last poll: most agents come back at once
AGAIN_SECONDS = 0.2
OFFERS = 250  # in one signal
ASSIGNED = frozenset({"task.assigned"})


class Poll:
    """One request for up to `most` tasks of an agent."""

    def __init__(self, agent: Agent, most: int) -> None:
        self.agent, self.most = agent, most
        self.left = False
        self.bell = asyncio.Event()

    def leave(self) -> None:
        """Whoever waits is no longer there: nothing may be handed out."""
        self.left = True
        self.bell.set()


class Desk:
    """The polls of one agent that wait in this process. They look into the inbox one after the other."""

    def __init__(self) -> None:
        self.polls: dict[Poll, None] = {}
        self.lock = asyncio.Lock()

    def ring(self) -> None:
        """Something may be there."""
        for poll in self.polls:
            poll.bell.set()


class Pulling:
    """All polls of this process."""

    def __init__(self, store: Store, clock: Clock = utc_now) -> None:
        self.store, self.clock = store, clock
        self.desks: dict[str, Desk] = {}
        self.aside = Aside(log)
        self._loops: list[asyncio.Task[None]] = []
        self._starting = asyncio.Lock()
        self._after = ""  # the reader's place in the stream
        self._untold: dict[str, None] = {}  # agents whose offer has changed
        self._changed = asyncio.Event()

    async def next(self, poll: Poll, wait_seconds: float) -> list[Task]:
        """Tasks that the agent has from now on; none if none came in time, or the poll left. Raises `Unavailable`."""
        await self._start()
        agent_id, loop = poll.agent.agent_id, asyncio.get_running_loop()
        desk = self.desks.setdefault(agent_id, Desk())
        desk.polls[poll] = None
        end = loop.time() + max(wait_seconds, SHORTEST_SECONDS)
        try:
            while not poll.left:
                poll.bell.clear()
                last = loop.time() >= end
                async with desk.lock:
                    tasks = [] if poll.left else await self._take(poll)
                if poll.left:  # it went away while the commit was on its way
                    await self._give_back(tasks)
                elif tasks:
                    return tasks
                if last or poll.left:
                    break
                self._tell(agent_id)
                with suppress(TimeoutError):  # then one last look
                    async with asyncio.timeout_at(end):
                        await poll.bell.wait()
            return []
        finally:
            del desk.polls[poll]
            if not desk.polls:
                del self.desks[agent_id]
            self._tell(agent_id)
            if not self.desks:
                loop.call_later(LINGER_SECONDS, self._rest)

    async def _take(self, poll: Poll) -> list[Task]:
        agent_id, at = poll.agent.agent_id, self.clock()
        found = await self.store.take(Task, "inbox", agent_id, limit=poll.most)
        writes: list[Write] = []
        taken: list[Task] = []
        for task, version in found:
            if task.state is TaskState.ASSIGNED and task.agent_id == agent_id and task.inbox == agent_id:
                after = machine.accept(task, task.attempt, at)
                writes.append(Write(task, after, version, changed(task, after)))
                taken.append(after)
        try:
            won = await self.store.commit_each(writes)
        except Unavailable:  # written or not, nobody gets them from here
            self.aside.spawn(self._give_back(taken))
            raise
        return [task for task, mine in zip(taken, won, strict=True) if mine]

    async def _give_back(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            try:
                await insist(lambda task=task: self.store.change(Task, task.task_id, self._back(task), changed))
            except (Conflict, NotFound) as error:
                log.info("%s: %s", task.task_id, error)

    def _back(self, mine: Task) -> Callable[[Task], Task]:
        def step(task: Task) -> Task:
            if task.task_token != mine.task_token or task.state not in HELD:
                return task
            return machine.release(task, mine.attempt, self.clock())

        return step

    # ---- offers

    def _tell(self, agent_id: str) -> None:
        self._untold[agent_id] = None
        self._changed.set()

    async def _offer_on(self) -> None:
        loop = asyncio.get_running_loop()
        renew_at = loop.time() + RENEW_SECONDS
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(renew_at):
                    await self._changed.wait()
            if loop.time() >= renew_at:
                renew_at = loop.time() + RENEW_SECONDS
                self._untold |= dict.fromkeys(self.desks)
            self._changed.clear()
            names, self._untold = list(self._untold), {}
            try:
                await self._offer(names)
            except Unavailable:
                self._untold |= dict.fromkeys(names)
                await asyncio.sleep(AGAIN_SECONDS)
                self._changed.set()

    async def _offer(self, agent_ids: Sequence[str]) -> None:
        sets = [(agent_id,) for agent_id in agent_ids]
        held, inside = await self.store.counts(Task, "held", sets), await self.store.counts(Task, "inbox", sets)
        offers = []
        for agent_id, has, waits in zip(agent_ids, held, inside, strict=True):
            desk = self.desks.get(agent_id)
            if desk is None:
                offers.append(offer(agent_id, 0, 0.0))
                continue
            wanted = sum(poll.most for poll in desk.polls)
            room = max(poll.agent.max_concurrent_tasks for poll in desk.polls)
            # What lies in the inbox is part of what is wanted: it is on its way to one of the polls.
            offers.append(offer(agent_id, min(has - waits + wanted, room), OFFER_SECONDS))
            if waits:
                desk.ring()
        for start in range(0, len(offers), OFFERS):
            await self.store.signal({"offers": offers[start : start + OFFERS]})

    # ---- the reader

    async def _ring_on(self) -> None:
        while True:
            try:
                events, self._after = await self.store.batch(self._after, ASSIGNED, wait_seconds=4)
            except Unavailable:
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            for event in events:
                desk = self.desks.get(event.data.get("agent_id", ""))
                if desk is not None:
                    desk.ring()

    async def _start(self) -> None:
        async with self._starting:
            if self._loops and not any(loop.done() for loop in self._loops):
                return
            self._stop()
            self._after = await self.store.last_event_id()
            self._loops = [self.aside.spawn(self._ring_on()), self.aside.spawn(self._offer_on())]

    def _stop(self) -> None:
        for loop in self._loops:
            loop.cancel()
        self._loops = []

    def _rest(self) -> None:
        if not self.desks and not self._untold:
            self._stop()

    async def close(self) -> None:
        """Let every poll go with nothing."""
        for desk in list(self.desks.values()):
            for poll in desk.polls:
                poll.leave()
        self._stop()
        self.aside.cancel()


def offer(agent_id: str, credit: int, seconds: float) -> dict[str, object]:
    """An agent's inbox over HTTP has the agent's name."""
    return {"agent_id": agent_id, "inbox": agent_id, "credit": credit, "seconds": seconds}
