"""Reads a window of what was recorded and has it replayed: the shell around `simulate`."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cluster.errors import Invalid
from cluster.identity.model import Principal
from cluster.routing import strategies
from cluster.routing.figures import figures, recorded
from cluster.routing.simulate import Simulation, Trace, Try, overridden, tried
from cluster.store import Store
from cluster.tasks.model import Task, TaskState
from cluster.trust.ledger import TrustRecord
from cluster.trust.score import TrustEvent
from cluster.trust.service import Trust
from cluster.workers.model import Agent

MOST_TASKS = 10_000
MOST_AGENTS = 1000  # of a capability
PAGE = 200
TRIES = 500  # of an agent: enough for its distribution
AS_SUBMITTED = "as_submitted"  # each task under the strategy that it asked for
ENDED = {TrustEvent.COMPLETED: True, TrustEvent.FAILED: False, TrustEvent.TIMEOUT: False}


@dataclass(frozen=True)
class Window:
    """What to replay, and how."""

    start: datetime
    end: datetime
    capability: str = ""  # empty: all
    strategies: tuple[str, ...] = (AS_SUBMITTED, *strategies.CATALOGUE)
    agents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # what is to be different about an agent
    seed: int = 0
    limit: int = MOST_TASKS


class Replaying:
    """Counterfactuals of a principal's own tasks; of everybody's for an admin."""

    def __init__(self, store: Store, trust: Trust) -> None:
        self.store, self.trust = store, trust
        self._alone = asyncio.Lock()  # it takes a core for its time: one at once is enough for a process

    async def simulate(self, who: Principal, window: Window) -> dict[str, Any]:
        """Raises `UnknownStrategy`; `Invalid` for an override of an agent that nothing could be given to."""
        for name in window.strategies:
            if name != AS_SUBMITTED:
                strategies.named(name)
        async with self._alone:
            tasks, scanned, more = await self._tasks(who, window)
            sample = {"tasks": len(tasks), "scanned": scanned, "truncated": more}
            if not tasks:
                of = (
                    f"of the {scanned} newest ones in the window none fits"
                    if more
                    else "none was submitted in the window"
                )
                return {"sample": sample | {"agents": 0}, "observed": None, "strategies": {},
                        "message": f"no tasks: {of}"}  # fmt: skip
            trace = await self._trace(tasks, window)
            capacities = {agent.agent_id: agent.max_concurrent_tasks for agent in trace.agents}
            # Beside the event loop; each strategy by itself, so that a cancelled request ends after one of them.
            found = {name: await asyncio.to_thread(_simulated, trace, name, window.seed) for name in window.strategies}
            observed = figures(recorded(tasks, capacities))
        gone = sorted({task.agent_id for task in tasks} - {""} - capacities.keys())
        return {
            "sample": sample | {"agents": len(trace.agents), "agents_gone": gone}, "observed": observed,
            "strategies": found, "message": None,
        }  # fmt: skip

    async def _tasks(self, who: Principal, window: Window) -> tuple[list[Task], int, bool]:
        """Oldest first; without what was cancelled, and without verified tasks, whose replicas are in it."""
        low, high = window.start.timestamp(), window.end.timestamp()
        whose = ("all",) if who.is_admin else ("owner", who.owner)
        ids = await self.store.ids(Task, "list", *whose, low=low, high=high, limit=window.limit + 1)
        tasks: list[Task] = []
        for start in range(0, min(len(ids), window.limit), PAGE):
            page = await self.store.many(Task, ids[start : min(start + PAGE, window.limit)])
            tasks += [
                task.model_copy(update={"input_data": {}, "result_data": None})
                for task in page
                if task.state is not TaskState.CANCELLED and task.verification is None
                and window.capability in ("", task.capability_required)
            ]  # fmt: skip
        return tasks, min(len(ids), window.limit), len(ids) > window.limit

    async def _trace(self, tasks: Sequence[Task], window: Window) -> Trace:
        agents: dict[str, Agent] = {}
        for capability in sorted({task.capability_required for task in tasks}):
            page = await self.store.page(Agent, "tag", capability, limit=MOST_AGENTS)
            agents |= {agent.agent_id: agent for agent in page.items}
        if unknown := sorted(window.agents.keys() - agents.keys()):
            raise Invalid(f"no agent {unknown[0]} has a capability of the window's tasks", field="agents")
        names = sorted(agents)
        tries = {name: await self._tries(name, window.start) for name in names}
        untold = {name for name, known in tries.items() if not known}  # their ledgers do not say how long work took
        for task in tasks:
            if task.agent_id in untold and (last := tried(task)):
                tries[task.agent_id].append(last)
        return Trace(
            tasks, overridden([agents[name] for name in names], window.agents), await self.trust.standings(names), tries
        )  # fmt: skip

    async def _tries(self, agent_id: str, since: datetime) -> list[Try]:
        """Every try from the window's start on, failed ones that were followed by another too."""
        ids = await self.store.ids(TrustRecord, "time", agent_id, low=since.timestamp(), limit=TRIES)
        return [
            Try(line.seconds, ENDED[line.event_type])
            for line in await self.store.many(TrustRecord, ids)
            if line.event_type in ENDED and line.seconds is not None
        ]


def _simulated(trace: Trace, name: str, seed: int) -> dict[str, Any]:
    return figures(Simulation(trace, "" if name == AS_SUBMITTED else name, seed).run())
