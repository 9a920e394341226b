"""Lists of agents: filters, orders, pages."""

from dataclasses import dataclass
from typing import Literal

from cluster.clock import Clock, utc_now
from cluster.store import Store
from cluster.tasks.model import Task
from cluster.trust.ledger import Standing
from cluster.trust.service import Trust
from cluster.workers.model import Agent

SCAN = 1000  # agents looked at per round when an index does not answer by itself
Order = Literal["created_at", "trust", "load"]


@dataclass(frozen=True)
class Wanted:
    """Which agents, and in which order; what is empty asks for nothing."""

    tag: str = ""
    status: str = ""
    owner: str = ""
    name: str = ""  # part of the display name or the id, whatever its case
    trust_min: float | None = None
    sort: Order = "created_at"
    descending: bool = True

    @property
    def index(self) -> tuple[str, tuple[str, ...]]:
        """The narrowest set that holds all of them."""
        if self.tag:
            return "tag", (self.tag,)
        if self.owner:
            return "list", ("owner", self.owner)
        return "list", ("status", self.status) if self.status else ("all",)

    @property
    def indexed(self) -> bool:
        """Whether that set is the list, in its order."""
        filters = [self.tag, self.owner, self.status]
        plain = self.sort == "created_at" and not self.name and self.trust_min is None
        return plain and sum(bool(each) for each in filters) <= 1

    def matches(self, agent: Agent) -> bool:
        """What the record alone says."""
        said = f"{agent.display_name}\n{agent.agent_id}".casefold()
        return (
            self.status in ("", agent.status)
            and self.owner in ("", agent.owner)
            and (not self.tag or self.tag in agent.tags)
            and self.name.casefold() in said
        )


@dataclass(frozen=True)
class Found:
    """An agent with what a list shows beside it."""

    agent: Agent
    standing: Standing
    load: int


class Finder:
    """Reads; changes nothing."""

    def __init__(self, store: Store, trust: Trust, clock: Clock = utc_now) -> None:
        self.store, self.trust, self.clock = store, trust, clock

    async def page(self, wanted: Wanted, offset: int = 0, limit: int = 50) -> tuple[list[Found], int]:
        """A page, and how many there are in all.

        Trust fades and load moves, so those filters and orders look at each agent of the set.
        """
        index, parts = wanted.index
        if wanted.indexed:
            page = await self.store.page(
                Agent, index, *parts, offset=offset, limit=limit, newest_first=wanted.descending
            )
            return await self.beside(page.items, load=True), page.total
        kept: list[Found] = []
        for start in range(0, await self.store.count(Agent, index, *parts), SCAN):
            some = (await self.store.page(Agent, index, *parts, offset=start, limit=SCAN)).items
            found = await self.beside([agent for agent in some if wanted.matches(agent)], load=wanted.sort == "load")
            now = self.clock()
            kept += [f for f in found if wanted.trust_min is None or f.standing.score(now) >= wanted.trust_min]
        now = self.clock()
        if wanted.sort == "trust":
            kept.sort(key=lambda f: f.standing.score(now), reverse=wanted.descending)
        elif wanted.sort == "load":
            kept.sort(key=lambda f: f.load / f.agent.max_concurrent_tasks, reverse=wanted.descending)
        elif not wanted.descending:
            kept.reverse()
        shown = kept[offset : offset + limit]
        if wanted.sort != "load":
            shown = await self.beside([f.agent for f in shown], load=True)
        return shown, len(kept)

    async def beside(self, agents: list[Agent], load: bool) -> list[Found]:
        """Each with its standing and, if asked for, its load."""
        names = [agent.agent_id for agent in agents]
        standings = await self.trust.standings(names) if names else {}
        loads = await self.store.counts(Task, "held", [(name,) for name in names]) if load else [0] * len(names)
        return [Found(agent, standings[agent.agent_id], n) for agent, n in zip(agents, loads, strict=True)]
