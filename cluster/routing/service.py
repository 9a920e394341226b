"""Asking the router's questions without moving anything: who would get such a task now, and what if?"""

from dataclasses import dataclass
from typing import Any

from cluster.clock import Clock, utc_now
from cluster.errors import NoCapableAgent
from cluster.identity.model import Principal
from cluster.routing import strategies
from cluster.routing.replaying import Replaying, Window
from cluster.routing.strategies import Candidate
from cluster.store import Store
from cluster.tasks.model import Task
from cluster.trust.ledger import Standing
from cluster.trust.service import Trust
from cluster.workers.model import Agent

MOST = 1000  # agents of one capability that a preview weighs


@dataclass(frozen=True)
class Preview:
    """The answer of a strategy over the agents as the store knows them; turns are the router's own and not in it."""

    agent: Agent
    standing: Standing
    load: int
    reason: str
    considered: int  # the chosen one included


class Routing:
    """Previews of a routing decision."""

    def __init__(self, store: Store, trust: Trust, clock: Clock = utc_now) -> None:
        self.store, self.trust, self.clock = store, trust, clock
        self.replaying = Replaying(store, trust)

    async def simulate(self, who: Principal, window: Window) -> dict[str, Any]:
        """See `Replaying.simulate`."""
        return await self.replaying.simulate(who, window)

    async def preview(self, capability: str, strategy: str) -> Preview:
        """Raises `UnknownStrategy`, `NoCapableAgent`."""
        choose = strategies.named(strategy)
        agents = (await self.store.page(Agent, "tag", capability, limit=MOST)).items
        names = [agent.agent_id for agent in agents]
        loads = await self.store.counts(Task, "held", [(name,) for name in names])
        standings, at = await self.trust.standings(names), self.clock()
        free = {
            agent.agent_id: (agent, load, standings[agent.agent_id])
            for agent, load in zip(agents, loads, strict=True)
            if agent.status == "active" and load < agent.max_concurrent_tasks
        }
        if not free:
            raise NoCapableAgent(
                f"no agent can take {capability} now", capability_required=capability, capable_agents=len(agents)
            )
        choice = choose(
            [
                Candidate(name, standing.score(at), load, agent.max_concurrent_tasks, standing.mean_seconds, 0)
                for name, (agent, load, standing) in free.items()
            ]
        )
        agent, load, standing = free[choice.agent_id]
        return Preview(agent, standing, load, choice.reason, len(free))
