"""Delivers tasks to the endpoints of agents, and commits what comes of it."""

import asyncio
import logging
import random
from datetime import datetime

from cluster import tracing
from cluster.aside import Aside
from cluster.clock import Clock
from cluster.errors import Unavailable
from cluster.origin import within
from cluster.routing.table import Table
from cluster.store import Store, Write
from cluster.store.together import Together
from cluster.tasks import machine
from cluster.tasks.delivery import Accepted, Completed, Delivery, Failed, Outcome, Unreachable
from cluster.tasks.events import changed
from cluster.tasks.model import Task
from cluster.tasks.steps import Steps
from cluster.workers.model import Agent

log = logging.getLogger("village.router")


class Courier:
    """The deliveries that are on their way."""

    def __init__(self, store: Store, table: Table, delivery: Delivery, clock: Clock) -> None:
        self.table, self.delivery, self.clock = table, delivery, clock
        self.together, self.steps = Together(store), Steps(store)
        self.running: dict[str, asyncio.Task[None]] = {}  # by attempt id, those that wait for their agent's answer
        self.timeouts: dict[str, asyncio.Timeout] = {}
        self.aside = Aside(log)
        self.random = random.Random()

    def send(self, task: Task, version: str, agent: Agent) -> None:
        """Begin the delivery of a task that was assigned and started, and is stored in this version."""
        delivery = self.aside.spawn(self._deliver(task, version, agent))
        self.running[task.attempt_id] = delivery
        delivery.add_done_callback(lambda _: self._forget(task.attempt_id))

    def _forget(self, attempt_id: str) -> None:
        self.running.pop(attempt_id, None)
        self.timeouts.pop(attempt_id, None)

    def over(self, attempt_id: str) -> None:
        """The attempt has been cancelled, has timed out, or was reported by its agent: nobody waits for its answer."""
        if running := self.running.get(attempt_id):
            running.cancel()

    def extended(self, attempt_id: str, deadline: datetime) -> None:
        """The agent was granted more time."""
        if timeout := self.timeouts.get(attempt_id):
            left = (deadline - self.clock()).total_seconds()
            timeout.reschedule(asyncio.get_running_loop().time() + max(left, 0.0))

    async def _deliver(self, task: Task, version: str, agent: Agent) -> None:
        about = {"task_id": task.task_id, "attempt": task.attempt, "agent_id": agent.agent_id}
        with tracing.span("task.deliver", task.traceparent, **about), within(tracing.origin()):
            await self._attempt(task, version, agent)

    async def _attempt(self, task: Task, version: str, agent: Agent) -> None:
        attempt = task.attempt
        assert task.deadline is not None
        left = (task.deadline - self.clock()).total_seconds()
        try:
            async with asyncio.timeout(max(left, 0.0)) as timeout:
                self.timeouts[task.attempt_id] = timeout
                outcome = await self.delivery.send(agent.endpoint, task)
                del self.timeouts[task.attempt_id]  # no longer to be put off: it is about to end
        except TimeoutError:
            await self.steps.one(task.task_id, lambda t: machine.lapse(t, self.clock(), self.random.random()))
            return
        # From here on there is an answer: the event of its own commit must not cancel the commit.
        self.running.pop(task.attempt_id, None)
        if isinstance(outcome, Unreachable):
            self.table.unanswered(agent.agent_id, self.clock())
        else:
            self.table.answered(agent.agent_id, self.clock())
        after = self._after(task, attempt, outcome)
        try:
            if await self.together.commit(Write(task, after, version, changed(task, after))):
                return
        except Unavailable:
            pass
        await self.steps.one(task.task_id, lambda t: self._after(t, attempt, outcome))

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

    def cancel(self) -> None:
        """End all of them."""
        self.aside.cancel()
