"""What would have happened: recorded arrivals and service times, replayed under another strategy. Pure.

A discrete-event simulation around the router's own parts: its backlog (priorities, ageing, fair shares), its table of
agents and strategies, and the task machine with its retries and back-off. Time is the trace's; the same seed gives the
same answer. A task takes on an agent what it took there in fact; on another one what that agent's tasks took, at the
same quantile under every strategy (common random numbers, so that strategies differ by routing and not by luck).
"""

import bisect
import heapq
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cluster.routing.backlog import Backlog, Waiting
from cluster.routing.table import Offer, Table
from cluster.tasks import machine
from cluster.tasks.model import FINAL, Task, TaskState
from cluster.trust import score
from cluster.trust.ledger import Chain, Standing
from cluster.trust.score import TrustEvent
from cluster.workers.model import Agent

FAR = timedelta(days=3650)
UNPARK_SECONDS = 1.0  # the router tries again what nobody might have; here less often each time that it was in vain


@dataclass(frozen=True)
class Try:
    """One try of a task by an agent, as recorded."""

    seconds: float
    completed: bool


@dataclass(frozen=True)
class Trace:
    """What was recorded. `tasks` as they ended, oldest first; `tries` by agent, of its own tasks."""

    tasks: Sequence[Task]
    agents: Sequence[Agent]
    standings: Mapping[str, Standing]
    tries: Mapping[str, Sequence[Try]]


@dataclass
class Run:
    """One task's way through the simulation."""

    task: Task
    arrived: datetime
    begun: datetime | None = None  # the first try
    ended: datetime | None = None
    served: float = 0.0  # seconds with agents, all tries


@dataclass
class Used:
    """What one agent did."""

    capacity: int
    tries: int = 0
    completed: int = 0
    failed: int = 0
    busy_seconds: float = 0.0


@dataclass
class Outcome:
    """All of it, for the figures."""

    runs: list[Run]
    agents: dict[str, Used]
    begun: datetime
    ended: datetime


def blank(task: Task, strategy: str, here: frozenset[str]) -> Task:
    """The task as it was submitted, under a strategy; it waits for those dependencies that are in the trace."""
    fresh = machine.NOBODYS | {
        "state": TaskState.PENDING, "attempt": 0, "retry_count": 0, "deadline": None, "not_before": None,
        "result_data": None, "input_data": {}, "metadata": {}, "error": "", "reason": "", "completed_at": None,
        "suspect": False, "extended_seconds": 0.0, "heartbeat_seconds": 0, "verification": None,
        # An extension that was granted is granted again.
        "timeout_seconds": min(machine.MAX_TRY_SECONDS, task.timeout_seconds + math.ceil(task.extended_seconds)),
        "waiting_for": tuple(name for name in task.depends_on if name in here),
    }  # fmt: skip
    return task.model_copy(update=fresh | ({"routing_strategy": strategy} if strategy else {}))


class Simulation:
    """One strategy over one trace; "" is the strategy that each task asked for."""

    def __init__(self, trace: Trace, strategy: str, seed: int = 0) -> None:
        self.trace, self.random = trace, random.Random(seed)
        self.start = min((task.created_at for task in trace.tasks), default=datetime.min)
        here = frozenset(task.task_id for task in trace.tasks)
        self.recorded = {task.task_id: task for task in trace.tasks}
        self.runs = {t.task_id: Run(blank(t, strategy, here), t.created_at) for t in trace.tasks}
        # Drawn in the trace's order, whatever the strategy does.
        self.luck = {task.task_id: (self.random.random(), self.random.random()) for task in trace.tasks}
        self.tries = {name: sorted(tries, key=lambda t: t.seconds) for name, tries in trace.tries.items()}
        self.pooled = sorted((t for tries in trace.tries.values() for t in tries), key=lambda t: t.seconds)
        self.dependents: dict[str, list[str]] = {}
        for name, run in self.runs.items():
            for dependency in run.task.waiting_for:
                self.dependents.setdefault(dependency, []).append(name)
        self.table, self.backlog = Table(), Backlog()
        self.chains: dict[str, Chain] = {}
        self.used: dict[str, Used] = {}
        for agent in trace.agents:
            standing = trace.standings.get(agent.agent_id) or Standing(standing_id=agent.agent_id, as_of=self.start)
            # A standing of later than the trace: its evidence counts as if it had been there at the start.
            standing = standing.model_copy(update={"as_of": min(standing.as_of, self.start)})
            self.table.put(agent, standing, self.start)
            if agent.pulls:
                room = Offer(agent.max_concurrent_tasks, self.start + FAR)
                self.table.offer(agent.agent_id, agent.agent_id, room, self.start)
            self.chains[agent.agent_id] = Chain(standing)
            self.used[agent.agent_id] = Used(agent.max_concurrent_tasks)
        self.ready: dict[tuple[str, str], list[tuple[float, str]]] = {}  # what the store's index would hold
        self.coming: list[tuple[datetime, int, str, int]] = []  # time, order, task, attempt (0: it arrives or wakes)
        self.order = itertools.count()
        self.queued: set[str] = set()  # and the ids in it
        self.parked_at: datetime | None = None
        self.patience = UNPARK_SECONDS

    def run(self) -> Outcome:
        """Until nothing is left to happen."""
        for name, run in self.runs.items():
            self._at(run.arrived, name, 0)
        now = self.start
        while self.coming:
            now, _, name, attempt = heapq.heappop(self.coming)
            capabilities = {self._happens(name, attempt, now)} if name else set()
            while self.coming and self.coming[0][0] == now:
                _, _, name, attempt = heapq.heappop(self.coming)
                capabilities |= {self._happens(name, attempt, now)} if name else set()
            if self.backlog.parked and self.parked_at and now >= self.parked_at:
                self.parked_at = None
                capabilities |= self.backlog.unpark()
            for capability in sorted(capabilities - {""}):
                self._dispatch(capability, now)
        return Outcome(list(self.runs.values()), self.used, self.start, now)

    def _at(self, when: datetime, name: str, attempt: int) -> None:
        heapq.heappush(self.coming, (when, next(self.order), name, attempt))

    # ---- what happens

    def _happens(self, name: str, attempt: int, now: datetime) -> str:
        """An arrival, the end of a back-off, or the end of a try; returns the capability to look at."""
        run = self.runs[name]
        if attempt:
            return self._ends(run, now)
        task = machine.wake(run.task, now)
        run.task = task
        if task.ready and task.task_id not in self.queued:
            self._enqueue(task)
        return task.capability_required

    def _enqueue(self, task: Task) -> None:
        self.queued.add(task.task_id)
        queue = (task.capability_required, task.share)
        bisect.insort(self.ready.setdefault(queue, []), (task.place, task.task_id))
        self.backlog.add(Waiting(task.place, task.task_id, *queue))

    def _dispatch(self, capability: str, now: datetime) -> None:
        """As `Router._dispatch`, with the index in memory."""
        while (room := self.table.room(capability)) > 0:
            hungry = self.backlog.hungry([capability])
            asked = self.backlog.ask(hungry)
            for queue in hungry:
                rows = [(name, place) for place, name in self.ready.get(queue, [])[:asked]]
                self.backlog.fill(*queue, rows, asked)
            taken = self.backlog.take(capability, now.timestamp(), room)
            if not taken:
                return
            for waiting in taken:
                self._give(waiting, now)

    def _give(self, waiting: Waiting, now: datetime) -> None:
        run = self.runs[waiting.task_id]
        choice = self.table.choose(run.task, now)
        if choice is None and self.table.room(waiting.capability):
            self.backlog.park(waiting)
            if self.parked_at is None:
                self.parked_at, self.patience = now + timedelta(seconds=self.patience), self.patience * 2
                if self.coming:  # with nothing to come, nothing will be otherwise either
                    self._at(self.parked_at, "", 0)
        elif choice is None:
            self.backlog.give_back([waiting])
        if choice is None:
            return
        entry, inbox = choice
        self.queued.discard(waiting.task_id)
        queue = self.ready[waiting.capability, waiting.share]
        del queue[bisect.bisect_left(queue, (waiting.place, waiting.task_id))]
        assigned = machine.assign(run.task, entry.agent.agent_id, "", now, inbox=inbox)
        run.task = machine.start(assigned, assigned.attempt, now)
        run.begun = run.begun or now
        self.table.hold(run.task.agent_id, run.task, now)
        took = self._takes(run.task)
        assert run.task.deadline is not None
        self._at(min(now + timedelta(seconds=took.seconds), run.task.deadline), run.task.task_id, run.task.attempt)

    def _takes(self, task: Task) -> Try:
        """How long the current try takes, and how it ends."""
        was = self.recorded[task.task_id]
        if task.attempt == 1 and was.agent_id == task.agent_id and was.retry_count == 0 and (own := tried(was)):
            return own
        tries = self.tries.get(task.agent_id) or self.pooled
        if not tries:
            return Try(0.0, True)
        quantile = (self.luck[task.task_id][0] + 0.618033988749895 * (task.attempt - 1)) % 1.0
        return tries[int(quantile * len(tries))]

    def _ends(self, run: Run, now: datetime) -> str:
        task = run.task
        assert task.started_at is not None and task.deadline is not None
        seconds, took, used = (now - task.started_at).total_seconds(), self._takes(task), self.used[task.agent_id]
        run.served += seconds
        used.tries, used.busy_seconds = used.tries + 1, used.busy_seconds + seconds
        if now >= task.deadline:
            after, event = machine.lapse(task, now, self.luck[task.task_id][1]), TrustEvent.TIMEOUT
        elif took.completed:
            after, event = machine.finish(task, task.attempt, None, now), TrustEvent.COMPLETED
        else:
            after = machine.fail(task, task.attempt, "as recorded", now, self.luck[task.task_id][1])
            event = TrustEvent.FAILED
        used.completed += event is TrustEvent.COMPLETED
        used.failed += event is not TrustEvent.COMPLETED
        run.task = after
        self.table.drop(task.agent_id, task.attempt_id, now)
        self._credit(task.agent_id, event, seconds, task.timeout_seconds, now)
        if after.state in FINAL:
            self._over(run, now)
        elif after.not_before is not None:
            self._at(after.not_before, task.task_id, 0)
        return task.capability_required

    def _credit(self, agent_id: str, event: TrustEvent, seconds: float, timeout: float, now: datetime) -> None:
        """What the ledger would make of it, without its lines."""
        chain = self.chains[agent_id]
        good, bad, _ = score.weights(event, seconds, timeout)
        chain.count(event, good, bad, max(now, chain.at), seconds)
        self.table.stands(agent_id, chain.standing(), now)

    def _over(self, run: Run, now: datetime) -> None:
        """It has ended, and so may those that depend on it."""
        run.ended = max(now, run.arrived)
        for name in self.dependents.get(run.task.task_id, ()):
            other = self.runs[name]
            if other.task.state in FINAL:
                continue
            other.task = machine.resolve(other.task, {run.task.task_id: run.task.state}, now)
            if other.task.state in FINAL:
                self._over(other, now)
            elif other.arrived <= now:
                self._at(now, name, 0)


def tried(task: Task) -> Try | None:
    """The last try of a recorded task; None where it never had one that ended."""
    seconds = task.execution_seconds
    if seconds is None or not task.agent_id or task.state not in FINAL or task.state is TaskState.CANCELLED:
        return None
    return Try(max(0.0, seconds), task.state is TaskState.COMPLETED)


def overridden(agents: Sequence[Agent], changes: Mapping[str, Mapping[str, object]]) -> list[Agent]:
    """The agents with what is to be different about them."""
    return [agent.model_copy(update=dict(changes.get(agent.agent_id, {}))) for agent in agents]
