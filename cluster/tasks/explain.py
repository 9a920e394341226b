"""Gathers the facts that `why` reasons over: a bounded number of round trips, whatever the size of the village."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cluster.clock import Clock, utc_now
from cluster.identity.model import Principal
from cluster.presence import Presence
from cluster.store import Store
from cluster.store.gauge import up_to
from cluster.tasks.model import FINAL, Task, line
from cluster.tasks.service import Tasks
from cluster.tasks.verification import replica_id
from cluster.tasks.why import DEEPEST, Blocker, Facts, Seen, why
from cluster.trust.service import Trust
from cluster.workers.model import Agent

MOST_AGENTS = 500
MOST_OTHERS = 200  # dependencies and replicas, theirs too
TIES = 1000  # tasks of one instant and priority, such as those of a few batches


@dataclass(frozen=True)
class Answer:
    """The task, and every reason for where it is."""

    task: Task
    blockers: list[Blocker]
    at: datetime


class Explainer:
    """Why a task is where it is."""

    def __init__(self, store: Store, tasks: Tasks, trust: Trust, clock: Clock = utc_now) -> None:
        self.store, self.tasks, self.trust, self.clock = store, tasks, trust, clock

    async def why(self, who: Principal, task_id: str) -> Answer:
        """Raises `TaskNotFound`."""
        task = await self.tasks.get(who, task_id)
        facts = await self._facts(who, task)
        return Answer(task, why(task, facts), facts.at)

    async def _facts(self, who: Principal, task: Task) -> Facts:
        at, others = self.clock(), await self._others(who, task)
        if not task.ready:
            return Facts(at, others=others)
        router = await self.store.find(Presence, "router")
        agents, total = await self._agents(task.capability_required, router.data if router else {}, at)
        queue = line(task.capability_required, task.share)
        [until, ready] = await up_to(self.store, Task, "ready", [task.place, float("inf")], *queue)
        ties = await self.store.ids(Task, "ready", *queue, low=task.place, high=task.place, limit=TIES)
        ahead = until - len(ties) + (ties.index(task.task_id) if task.task_id in ties else 0)
        return Facts(
            at, router is not None and router.alive(at), agents, total - len(agents), others, max(0, ahead), ready
        )  # fmt: skip

    async def _others(self, who: Principal, task: Task) -> dict[str, Task]:
        """Its dependencies and theirs, level by level, and its replicas."""
        found: dict[str, Task] = {}
        wanted = [*task.depends_on] if task.state in FINAL else [*task.waiting_for]
        if task.verification is not None:
            wanted += [replica_id(task.task_id, number) for number in range(1, task.verification.asked + 1)]
        for _ in range(DEEPEST):
            new = list(dict.fromkeys(name for name in wanted if name not in found))[: MOST_OTHERS - len(found)]
            if not new:
                break
            level = [other for other in await self.tasks.finished.many(new) if who.sees(other.owner)]
            found |= {other.task_id: other for other in level}
            wanted = [name for other in level for name in other.waiting_for or other.depends_on]
        return found

    async def _agents(self, capability: str, told: dict[str, Any], at: datetime) -> tuple[list[Seen], int]:
        page = await self.store.page(Agent, "tag", capability, limit=MOST_AGENTS)
        names = [agent.agent_id for agent in page.items]
        held = await self.store.counts(Task, "held", [(name,) for name in names])
        standings = await self.trust.standings(names) if names else {}
        resting, offers = told.get("resting", {}), told.get("offers", {})
        cut = len(offers) >= 100  # the router's beat names no more: whether another one asks is not known
        return [
            Seen(
                agent.agent_id, agent.status == "active", load, agent.max_concurrent_tasks,
                standings[agent.agent_id].score(at), agent.pulls, moment(resting.get(agent.agent_id)),
                offers.get(agent.agent_id, agent.max_concurrent_tasks if cut else None),
            )
            for agent, load in zip(page.items, held, strict=True)
        ], page.total  # fmt: skip


def moment(text: str | None) -> datetime | None:
    """A time of the router's beat."""
    return datetime.fromisoformat(text) if text else None
