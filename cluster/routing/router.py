"""The router: gives ready tasks to agents, delivers them, and keeps their deadlines.

There is one router per village. It keeps loops and sockets; every decision is a versioned commit on the task's record,
so a router that is killed loses nothing: the next one reads the queue from the store, gives back what was on its way,
and goes on. A result that it had received but not committed is delivered again (at least once); only the current
attempt's result counts (effective once). That no agent holds more than it may is checked by the commit itself, so not
even two routers at once break it.
"""

import asyncio
import logging
import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from cluster.aside import Aside, insist
from cluster.clock import Clock, iso, utc_now
from cluster.errors import Unavailable
from cluster.events import Event
from cluster.presence import BEAT_SECONDS, beat
from cluster.routing.backlog import Backlog, Waiting
from cluster.routing.courier import Courier
from cluster.routing.dependents import Dependents
from cluster.routing.plan import plan
from cluster.routing.table import Offer, Table, in_village
from cluster.routing.timekeeper import OFFER_SECONDS, Timekeeper
from cluster.store import Store, Write
from cluster.tasks import machine
from cluster.tasks.delivery import Delivery
from cluster.tasks.finished import Finished
from cluster.tasks.model import HELD, Task, TaskState, line
from cluster.tasks.steps import Steps
from cluster.trust.ledger import Standing
from cluster.trust.service import Trust
from cluster.workers.model import Agent

log = logging.getLogger("village.router")
TICK_SECONDS = 0.25
BATCH = 256
LAPSES = 500  # tasks of one commit that time has changed
AGENTS_PER_READ = 500
TOLD = 100  # names of a kind that the beat says
WATCHED = frozenset(
    f"task.{verb}" for verb in
    ("created", "ready", "retry", "released", "updated", "completed", "failed", "cancelled", "timeout", "extended")
) | {"agent.registered", "agent.updated", "agent.deactivated", "trust.changed"}  # fmt: skip


class Router:
    """See the module. `run` returns only when it is cancelled."""

    NAME = "router"

    def __init__(
        self, store: Store, trust: Trust, delivery: Delivery, clock: Clock = utc_now, finished: Finished | None = None
    ) -> None:
        self.store, self.trust, self.clock = store, trust, clock
        self.table = Table()
        self.steps = Steps(store)
        self.dependents = Dependents(store, finished or Finished(store), clock)
        self.courier = Courier(store, self.table, delivery, clock)
        self.timekeeper = Timekeeper(self, clock)
        self.backlog = Backlog()
        self.due: dict[str, None] = {}  # capabilities that may have both a ready task and a free agent
        self.work = asyncio.Event()
        self.aside = Aside(log)  # everything that runs beside the loops
        self.moved: set[str] = set()  # agents whose trust has moved
        self.assigned = 0

    async def run(self) -> None:
        """Recover, then route for ever."""
        after = await insist(self.store.last_event_id)
        await insist(self.recover)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch(after))
                group.create_task(self._listen())
                group.create_task(self._dispatch_all())
                group.create_task(self.timekeeper.run())
                group.create_task(self._beat())
        finally:
            self.aside.cancel()
            self.courier.cancel()

    async def recover(self) -> None:
        """Know the agents, what they hold and what waits; give back what a former router had on its way."""
        for start in range(0, await self.store.count(Agent, "list", "all"), AGENTS_PER_READ):
            page = await self.store.page(Agent, "list", "all", offset=start, limit=AGENTS_PER_READ)
            standings = await self.trust.standings([agent.agent_id for agent in page.items])
            for agent in page.items:
                self._learn(agent, standings[agent.agent_id])
        ids = await self.store.ids(Task, "deadline")
        for start in range(0, len(ids), LAPSES):
            found = await self.store.load_many(Task, ids[start : start + LAPSES])
            await self.recover_held(found)
        for task in await self.store.first_of_each(Task, "ready"):
            self.backlog.expect(task.capability_required, task.share)
            self.wake(task.capability_required)
        await self.dependents.resolve(await self.store.ids(Task, "waiting"))

    async def recover_held(self, found: Sequence[tuple[Task, str]]) -> None:
        """Know what agents hold that another router gave out; what it had on its way goes back to the queue."""
        lost = []
        for task, version in found:
            if task.state not in HELD:
                continue
            at = self.clock()
            if task.accepted and task.agent_id in self.table.entries:
                self.table.hold(task.agent_id, task, at)
                if in_village(task.agent_id, task.inbox):  # its worker may be gone: if so, it does not offer again
                    self.table.offer(task.agent_id, task.inbox, Offer(0, at + timedelta(seconds=OFFER_SECONDS)), at)
            elif task.inbox and task.state is TaskState.ASSIGNED and task.agent_id in self.table.entries:
                self.table.hold(task.agent_id, task, at)  # its agent still may pick it up
            else:
                lost.append((task, version))
        await self.steps.many(lost, lambda t: machine.release(t, t.attempt, self.clock()))

    def _learn(self, agent: Agent, standing: Standing) -> None:
        self.table.put(agent, standing, self.clock())
        self.wake(*agent.tags)

    def wake(self, *capabilities: str) -> None:
        """These may have both a ready task and a free agent now."""
        for capability in capabilities:
            if self.table.room(capability):
                self.due[capability] = None
        if self.due:
            self.work.set()

    # ---- events and signals

    async def _watch(self, after: str) -> None:
        while True:
            try:
                batch, after = await self.store.batch(after, WATCHED, wait_seconds=4)
            except Unavailable:
                await asyncio.sleep(TICK_SECONDS)
                continue
            ended: list[str] = []
            for event in batch:
                if event.kind.startswith("task."):
                    if self._observe_task(event):
                        ended.append(event.subject)
                elif event.kind == "trust.changed":
                    self.moved.add(event.subject)
                else:
                    await insist(lambda seen=event: self._observe_agent(seen))
            if ended:
                self.aside.spawn(insist(lambda ids=ended: self.dependents.free(ids)))

    async def _observe_agent(self, event: Event) -> None:
        agent = await self.store.find(Agent, event.subject)
        if agent:
            self._learn(agent, await self.trust.standing(agent.agent_id))

    def _observe_task(self, event: Event) -> bool:
        """Whether the task has ended, so that others may go on."""
        data, task_id = event.data, event.subject
        attempt_id = f"{task_id}.{data['attempt']}"
        if event.kind == "task.extended":
            self.courier.extended(attempt_id, datetime.fromisoformat(data["deadline"]))
            return False
        if data["agent_id"]:
            self.wake(*self.table.drop(data["agent_id"], attempt_id, self.clock()))
        self.courier.over(attempt_id)
        if data["status"] != TaskState.PENDING:
            if event.kind != "task.completed":
                self.backlog.drop(data["capability"], data["share"], task_id)
            return True
        if "place" in data:
            self.backlog.add(Waiting(data["place"], task_id, data["capability"], data["share"]))
            self.wake(data["capability"])
        elif data["waiting"]:
            self.aside.spawn(insist(lambda: self.dependents.resolve([task_id])))
        return False

    async def _listen(self) -> None:
        async for signal in self.store.signals():
            for offer in signal.get("offers") or filter(None, [signal.get("offer")]):
                until = self.clock() + timedelta(seconds=offer["seconds"])
                credit = Offer(offer["credit"], until)
                self.wake(*self.table.offer(offer["agent_id"], offer["inbox"], credit, self.clock()))

    # ---- dispatch

    async def _dispatch_all(self) -> None:
        while True:
            await self.work.wait()
            self.work.clear()
            while self.due:
                try:
                    await self._dispatch()
                except Unavailable:
                    await asyncio.sleep(TICK_SECONDS)

    async def _dispatch(self) -> None:
        """One batch, of every capability that is due in turn."""
        await self.fill(self.due)
        batch: list[Waiting] = []
        for capability in list(self.due):
            del self.due[capability]
            room = min(self.table.room(capability), BATCH - len(batch))
            taken = self.backlog.take(capability, self.clock().timestamp(), room) if room > 0 else []
            batch += taken
            if taken or (self.table.room(capability) and self.backlog.hungry([capability])):
                self.due[capability] = None  # behind the others, and asked again until it has nothing
            if len(batch) >= BATCH:
                break
        if batch:
            try:
                found = await self.store.read(*((Task, waiting.task_id) for waiting in batch))
            except Unavailable:
                self.backlog.give_back(batch)
                raise
            await self._assign_all(batch, found)

    async def fill(self, capabilities: Iterable[str]) -> None:
        """Ask the store for the heads of lines whose head is not known."""
        hungry = self.backlog.hungry(capabilities)
        asked = self.backlog.ask(hungry)
        heads = await self.store.scored(Task, "ready", [line(*names) for names in hungry], asked)
        for (capability, share), rows in zip(hungry, heads, strict=True):
            self.backlog.fill(capability, share, rows, asked)

    async def _assign_all(self, batch: Sequence[Waiting], found: Sequence[tuple[Task | None, str]]) -> None:
        # Between here and the end of the commit nothing else assigns: this loop is the only one that does.
        at = self.clock()
        plans: list[tuple[Waiting, Task, Write]] = []
        for waiting, (task, version) in zip(batch, found, strict=True):
            if task is None or not task.ready or task.place != waiting.place:
                continue  # it has changed, and whatever made it ready again has told so
            if (choice := self.table.choose(task, at)) is None:
                if self.table.room(waiting.capability):
                    self.backlog.park(waiting)
                else:
                    self.backlog.give_back([waiting])
                continue
            write = plan(task, version, *choice, at, secrets.token_urlsafe(16))
            assert isinstance(write.after, Task)
            self.table.hold(write.after.agent_id, write.after, at)
            plans.append((waiting, write.after, write))
        try:
            results = await self.store.commit_each([write for _, _, write in plans])
        except Unavailable:
            for waiting, after, _ in plans:
                self.aside.spawn(self._take_back(waiting, after))
            raise
        for (waiting, after, write), won in zip(plans, results, strict=True):
            if won:
                self._send(after, str(int(write.version) + 1))
            else:
                self.wake(*self.table.drop(after.agent_id, after.attempt_id, at))
                self.backlog.park(waiting)  # looked at again: if it is still ready, the agent had no room after all

    def _send(self, task: Task, version: str) -> None:
        self.assigned += 1
        entry = self.table.entries[task.agent_id]
        if task.inbox or task.attempt_id not in entry.held:
            return  # its index is the delivery; or it was cancelled meanwhile, and the event was seen already
        self.courier.send(task, version, entry.agent)

    async def _take_back(self, waiting: Waiting, task: Task) -> None:
        """The store went away while `task` was assigned: if it was written all the same, nobody delivers it."""
        # By the token, not the attempt: if it was not written, the next assignment has the same attempt's number.
        await self.steps.one(
            task.task_id,
            lambda t: machine.release(t, task.attempt, self.clock()) if t.task_token == task.task_token else t,
        )
        self.wake(*self.table.drop(task.agent_id, task.attempt_id, self.clock()))
        self.backlog.add(waiting)
        self.wake(waiting.capability)

    def told(self) -> dict[str, Any]:
        """What the beat says, for those who explain why a task waits, and for those who start workers."""
        entries = self.table.entries
        resting = {name: iso(until) for name in self.table.resting if (until := entries[name].rests_until)}
        offers = {name: sum(offer.credit for offer in entries[name].offers.values()) for name in self.table.offering}
        return {
            "agents": len(entries), "delivering": len(self.courier.running), "assigned": self.assigned,
            "resting": dict(list(resting.items())[:TOLD]), "offers": dict(list(offers.items())[:TOLD]),
            "waiting": dict(list(self.backlog.sizes().items())[:TOLD]),
        }  # fmt: skip

    async def _beat(self) -> None:
        while True:
            try:
                await beat(self.store, self.NAME, self.clock(), self.told())
            except Unavailable:
                log.warning("the store does not answer")
            await asyncio.sleep(BEAT_SECONDS)
