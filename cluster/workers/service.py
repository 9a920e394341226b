"""Agents: registering with a signature, and looking them up."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from cluster.clock import Clock, utc_now
from cluster.errors import AgentExists, AgentNotFound, AlreadyExists, Invalid
from cluster.events import Event
from cluster.identity.model import Principal
from cluster.store import Page, Store
from cluster.tasks.model import Task
from cluster.trust.ledger import Standing
from cluster.trust.service import Trust
from cluster.workers import signature
from cluster.workers.model import DEFAULT_CONCURRENCY, Agent

SCAN = 1000  # agents looked at per round when a filter is not an index


class Workers:
    """Agent use cases. Agents are known to everybody who may read agents; tasks reach them by capability."""

    def __init__(self, store: Store, trust: Trust, clock: Clock = utc_now, https_only: bool = False) -> None:
        self.store, self.trust, self.clock, self.https_only = store, trust, clock, https_only

    async def register(
        self, who: Principal, *, agent_id: str, display_name: str, public_key: str, endpoint: str, tags: Sequence[str],
        signed: str, metadata: dict[str, Any],
    ) -> Agent:  # fmt: skip
        """Raises `BadSignature`, `Invalid`, `AgentExists`."""
        self._check_endpoint(endpoint)
        signature.verify(public_key, signed, signature.signed_bytes(agent_id, display_name, public_key, endpoint, tags))
        at = self.clock()
        agent = Agent(
            agent_id=agent_id, owner=who.owner, display_name=display_name, public_key=public_key, endpoint=endpoint,
            tags=tuple(dict.fromkeys(tags)), metadata=metadata, created_at=at, last_seen_at=at,
            max_concurrent_tasks=self._concurrency(metadata),
        )  # fmt: skip
        event = Event(
            kind="agent.registered", subject=agent_id, owner=who.owner, at=at,
            data={"agent_id": agent_id, "tags": list(agent.tags), "display_name": display_name},
        )  # fmt: skip
        try:
            return await self.store.create(agent, event)
        except AlreadyExists as error:
            raise AgentExists(f"agent {agent_id} is registered", agent_id=agent_id) from error

    def _check_endpoint(self, endpoint: str) -> None:
        allowed = ("https",) if self.https_only else ("https", "http")
        try:
            parts = urlsplit(endpoint)
            good = parts.scheme in allowed and bool(parts.hostname) and parts.port != 0
        except ValueError:  # an unclosed bracket, a port beyond 65535
            good = False
        if not good:
            raise Invalid(
                "the endpoint is not a URL of an allowed kind", field="endpoint", allowed_values=list(allowed)
            )

    @staticmethod
    def _concurrency(metadata: dict[str, Any]) -> int:
        wanted = metadata.get("max_concurrent_tasks", DEFAULT_CONCURRENCY)
        if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted <= 10_000:
            raise Invalid(
                "max_concurrent_tasks is a whole number from 1 to 10000", field="metadata.max_concurrent_tasks"
            )
        return wanted

    async def get(self, agent_id: str) -> Agent:
        """Raises `AgentNotFound`."""
        agent = await self.store.find(Agent, agent_id)
        if agent is None:
            raise AgentNotFound(f"no agent {agent_id}", agent_id=agent_id)
        return agent

    async def load(self, agent_id: str) -> int:
        """How many tasks the agent holds."""
        return await self.store.count(Task, "held", agent_id)

    async def loads(self, agent_ids: Sequence[str]) -> list[int]:
        """`load` for several."""
        return await self.store.counts(Task, "held", [(agent_id,) for agent_id in agent_ids])

    async def page(
        self, *, tag: str = "", trust_min: float | None = None, status: str = "", offset: int = 0, limit: int = 50
    ) -> tuple[Page[Agent], dict[str, Standing]]:
        """Newest first, with their standings. Trust fades with time, so that filter looks at each agent."""
        index, parts = ("tag", (tag,)) if tag else ("list", ("status", status) if status else ("all",))
        if trust_min is None and not (tag and status):
            page = await self.store.page(Agent, index, *parts, offset=offset, limit=limit)
            return page, await self.trust.standings([agent.agent_id for agent in page.items])
        kept: list[Agent] = []
        standings: dict[str, Standing] = {}
        for start in range(0, await self.store.count(Agent, index, *parts), SCAN):
            some = (await self.store.page(Agent, index, *parts, offset=start, limit=SCAN)).items
            found = await self.trust.standings([agent.agent_id for agent in some])
            now = self.clock()
            for agent in some:
                good = trust_min is None or found[agent.agent_id].score(now) >= trust_min
                if good and status in ("", agent.status):
                    kept.append(agent)
            standings |= found
        return Page(kept[offset : offset + limit], len(kept)), standings
