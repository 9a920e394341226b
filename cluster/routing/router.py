"""The router: gives ready tasks to agents, delivers them, and keeps their deadlines.

There is one router per village. It keeps loops and sockets; every decision is a versioned commit on the task's record,
so a router that is killed loses nothing: the next one reads the queue from the store, gives back what was on its way,
and goes on. A result that it had received but not committed is delivered again (at least once); only the current
attempt's result counts (effective once).
"""

import asyncio
import logging
import random
import secrets
from collections.abc import Callable
from datetime import datetime

from cluster import tracing
from cluster.aside import Aside, insist
from cluster.clock import Clock, utc_now
from cluster.errors import Conflict, NotFound, Unavailable
from cluster.events import Event
from cluster.origin import within
from cluster.presence import BEAT_SECONDS, beat
from cluster.routing import strategies
from cluster.routing.table import Table
from cluster.store import Store, Write
from cluster.tasks import machine
from cluster.tasks.delivery import Accepted, Completed, Delivery, Failed, Outcome, Unreachable
from cluster.tasks.events import changed
from cluster.tasks.model import HELD, Task, TaskState
from cluster.trust.ledger import Standing
from cluster.trust.service import Trust
from cluster.workers.model import Agent

log = logging.getLogger("village.router")
TICK_SECONDS = 0.25
BATCH = 64
AGENTS_PER_READ = 500
Step = Callable[[Task], Task]


class Router:
    """See the module. `run` returns only when it is cancelled."""

    NAME = "router"

    def __init__(self, store: Store, trust: Trust, delivery: Delivery, clock: Clock = utc_now) -> None:
        self.store, self.trust, self.delivery, self.clock = store, trust, delivery, clock
        self.table = Table()
        self.due: set[str] = set()  # capabilities that may have both a ready task and a free agent
        self.work = asyncio.Event()
        self.deliveries: dict[str, asyncio.Task[None]] = {}  # by attempt id, those that wait for their agent's answer
        self.aside = Aside(log)  # everything that runs beside the loops
        self.random = random.Random()
        self.assigned = 0

    async def run(self) -> None:
        """Recover, then route for ever."""
        after = await insist(self.store.last_event_id)
        await insist(self.recover)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch(after))
                group.create_task(self._dispatch_all())
                group.create_task(self._keep_time())
                group.create_task(self._beat())
        finally:
            self.aside.cancel()

    async def recover(self) -> None:
        """Know the agents and what they hold; give back what a former router had on its way."""
        for start in range(0, await self.store.count(Agent, "list", "all"), AGENTS_PER_READ):
            page = await self.store.page(Agent, "list", "all", offset=start, limit=AGENTS_PER_READ)
            standings = await self.trust.standings([agent.agent_id for agent in page.items])
            for agent in page.items:
                self._learn(agent, standings[agent.agent_id])
        for task in await self.store.many(Task, await self.store.ids(Task, "deadline")):
            if task.state not in HELD:
                continue
            if task.accepted and task.agent_id in self.table.entries:
                self.table.hold(task.agent_id, task.attempt_id)
            else:
                await self._step(task.task_id, lambda t, a=task.attempt: machine.release(t, a, self.clock()))
        for task_id in await self.store.ids(Task, "waiting"):
            await self._resolve(task_id)

    def _learn(self, agent: Agent, standing: Standing) -> None:
        self.table.put(agent, standing)
        self._wake(*agent.tags)

    def _wake(self, *capabilities: str) -> None:
        self.due.update(capabilities)
        if self.due:
            self.work.set()

    # ---- events

    async def _watch(self, after: str) -> None:
        async for event in self.store.follow(after):
            await insist(lambda seen=event: self._observe(seen))

    async def _observe(self, event: Event) -> None:
        if event.kind.startswith("task."):
            self._observe_task(event)
        elif event.kind in ("agent.registered", "agent.updated", "agent.deactivated"):
            agent = await self.store.find(Agent, event.subject)
            if agent:
                self._learn(agent, await self.trust.standing(agent.agent_id))
        elif event.kind == "trust.changed" and event.subject in self.table.entries:
            self.table.entries[event.subject].standing = await self.trust.standing(event.subject)

    def _observe_task(self, event: Event) -> None:
        state, task_id = TaskState(event.data["status"]), event.subject
        attempt_id = f"{task_id}.{event.data['attempt']}"
        if event.kind in ("task.assigned", "task.started", "task.accepted"):
            return
        if event.data["agent_id"]:
            self._wake(*self.table.drop(event.data["agent_id"], attempt_id))
        if running := self.deliveries.get(attempt_id):
            running.cancel()  # over for this attempt: cancelled, timed out, or reported by its agent
        if state is TaskState.PENDING:
            if event.data["waiting"]:
                self.aside.spawn(insist(lambda: self._resolve(task_id)))
            self._wake(event.data["capability"])
            return
        self.aside.spawn(insist(lambda: self._free_dependents(task_id)))

    async def _free_dependents(self, task_id: str) -> None:
        for dependent in await self.store.ids(Task, "dependents", task_id):
            await self._resolve(dependent)

    async def _resolve(self, task_id: str) -> None:
        task = await self.store.find(Task, task_id)
        if task is None:
            return
        states = {other.task_id: other.state for other in await self.store.many(Task, task.waiting_for)}
        await self._step(task_id, lambda t: machine.resolve(t, states, self.clock()))

    # ---- dispatch

    async def _dispatch_all(self) -> None:
        while True:
            await self.work.wait()
            self.work.clear()
            while self.due:
                capability = self.due.pop()
                try:
                    await self._dispatch(capability)
                except Unavailable:
                    self._wake(capability)
                    await asyncio.sleep(TICK_SECONDS)

    async def _dispatch(self, capability: str) -> None:
        while free := self.table.free(capability, self.clock()):
            room = sum(entry.agent.max_concurrent_tasks - len(entry.held) for entry in free)
            ids = await self.store.ids(Task, "ready", capability, limit=min(room, BATCH))
            if not ids:
                return
            found = await self.store.load_many(Task, ids)
            # Between here and the end of the gather nothing else assigns: this loop is the only one that does.
            results = await asyncio.gather(*(self._assign(task, version) for task, version in found))
            if not any(results):
                return

    async def _assign(self, task: Task, version: str) -> bool:
        at = self.clock()
        free = self.table.free(task.capability_required, at)
        if not free:
            return False
        choose = strategies.named(task.routing_strategy)
        agent_id = choose([entry.candidate(at) for entry in free]).agent_id
        try:
            after = machine.assign(task, agent_id, machine.token(task, secrets.token_urlsafe(16)), at)
        except Conflict:  # cancelled, or put off, since its id was read
            return False
        self.table.hold(agent_id, after.attempt_id)
        won = False
        try:
            won = await self.store.commit(Write(task, after, version, changed(task, after)))
        except Unavailable:
            self.aside.spawn(self._take_back(after))
            self._wake(task.capability_required)
        if not won:
            self.table.drop(agent_id, after.attempt_id)
            return False
        self.assigned += 1
        delivery = self.aside.spawn(self._deliver(after, self.table.entries[agent_id].agent))
        self.deliveries[after.attempt_id] = delivery
        delivery.add_done_callback(lambda _: self.deliveries.pop(after.attempt_id, None))
        return True

    async def _take_back(self, task: Task) -> None:
        """The store went away while `task` was assigned: if it was written all the same, nobody delivers it."""
        # By the token, not the attempt: if it was not written, the next assignment has the same attempt's number.
        await self._step(
            task.task_id,
            lambda t: machine.release(t, task.attempt, self.clock()) if t.task_token == task.task_token else t,
        )

    async def _deliver(self, task: Task, agent: Agent) -> None:
        about = {"task_id": task.task_id, "attempt": task.attempt, "agent_id": agent.agent_id}
        with tracing.span("task.deliver", task.traceparent, **about), within(tracing.origin()):
            await self._attempt(task, agent)

    async def _attempt(self, task: Task, agent: Agent) -> None:
        attempt = task.attempt
        if await self._step(task.task_id, lambda t: machine.start(t, attempt, self.clock())) is None:
            return  # cancelled before it was on its way
        assert task.deadline is not None
        left = (task.deadline - self.clock()).total_seconds()
        try:
            async with asyncio.timeout(max(left, 0.0)):
                outcome = await self.delivery.send(agent.endpoint, task)
        except TimeoutError:
            await self._step(task.task_id, lambda t: machine.expire(t, self.clock(), self.random.random()))
            return
        # From here on there is an answer: the event of its own commit must not cancel the commit.
        self.deliveries.pop(task.attempt_id, None)
        if isinstance(outcome, Unreachable):
            self.table.unanswered(agent.agent_id, self.clock())
        else:
            self.table.answered(agent.agent_id)
        await self._step(task.task_id, lambda t: self._after(t, attempt, outcome))

    def _after(self, task: Task, attempt: int, outcome: Outcome) -> Task:
        at = self.clock()
        match outcome:
            case Completed(result_data):
                return machine.finish(task, attempt, result_data, at)
            case Failed(error):
                return machine.fail(task, attempt, error, at, self.random.random())
            case Accepted():
                return machine.accept(task, attempt, at)
            case Unreachable():
                return machine.release(task, attempt, at)

    async def _step(self, task_id: str, step: Step) -> Task | None:
        """Commit a step, however long Redis is away; None, and nothing done, for one that has become stale."""
        try:
            return await insist(lambda: self.store.change(Task, task_id, step, changed))
        except (Conflict, NotFound) as error:
            log.info("%s: %s", task_id, error)
            return None

    # ---- time

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                await self._tick(self.clock())
            except Unavailable:
                log.warning("the store does not answer")

    async def _tick(self, at: datetime) -> None:
        now = at.timestamp()
        self._wake(*self.table.rested(at))
        for task_id in await self.store.ids(Task, "delayed", high=now, limit=BATCH):
            await self._step(task_id, lambda t: machine.wake(t, self.clock()))
        for task_id in await self.store.ids(Task, "deadline", high=now, limit=BATCH):
            await self._step(task_id, lambda t: machine.expire(t, self.clock(), self.random.random()))

    async def _beat(self) -> None:
        while True:
            data = {"agents": len(self.table.entries), "delivering": len(self.deliveries), "assigned": self.assigned}
            try:
                await beat(self.store, self.NAME, self.clock(), data)
            except Unavailable:
                log.warning("the store does not answer")
            await asyncio.sleep(BEAT_SECONDS)
