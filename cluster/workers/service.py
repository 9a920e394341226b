"""Agents: registering with a signature, changing, staying, leaving; and looking them up."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from pydantic_core import to_json

from cluster.clock import Clock, utc_now
from cluster.errors import AgentNotFound, AlreadyExists, Conflict, Forbidden, Invalid, NotFound
from cluster.events import Event
from cluster.identity.model import Principal
from cluster.store import Store, Write
from cluster.tasks import machine as tasks
from cluster.tasks.events import changed
from cluster.tasks.model import HELD, Task, TaskState
from cluster.trust.service import Trust
from cluster.workers import machine, signature
from cluster.workers.finding import Finder, Found, Wanted
from cluster.workers.model import DEFAULT_CONCURRENCY, DEFAULT_TTL_SECONDS, PULL, TTL_SECONDS, Agent, Health

MOST_METADATA = 64 << 10  # bytes of what an agent says of itself, as JSON
REMEMBERED = 10_000  # agents whose last sign of life this process remembers
RELEASED = 100  # tasks given back in one commit


class Workers:
    """Agent use cases. Agents are known to everybody who may read agents; tasks reach them by capability."""

    def __init__(self, store: Store, trust: Trust, clock: Clock = utc_now, https_only: bool = False) -> None:
        self.store, self.trust, self.clock, self.https_only = store, trust, clock, https_only
        self._heard: dict[str, datetime] = {}

    async def register(
        self, who: Principal, *, agent_id: str, display_name: str, public_key: str, endpoint: str, tags: Sequence[str],
        signed: str, metadata: dict[str, Any],
    ) -> Agent:  # fmt: skip
        """Raises `BadSignature`, `Invalid`, `AgentExists`. An inactive agent comes back by its own key."""
        self._check_endpoint(endpoint)
        signature.verify(public_key, signed, signature.signed_bytes(agent_id, display_name, public_key, endpoint, tags))
        at, said = self.clock(), self._said(metadata)
        agent = Agent(
            agent_id=agent_id, owner=who.owner, display_name=display_name, public_key=public_key, endpoint=endpoint,
            tags=tuple(dict.fromkeys(tags)), created_at=at, last_seen_at=at, **said,
        )  # fmt: skip
        if "ttl_seconds" in metadata:
            agent = machine.kept(agent, at)
        event = Event(
            kind="agent.registered", subject=agent_id, owner=who.owner, at=at,
            data={"agent_id": agent_id, "tags": list(agent.tags), "display_name": display_name},
        )  # fmt: skip
        try:
            return await self.store.create(agent, event)
        except AlreadyExists:
            return await self._change(agent_id, lambda former: machine.again(former, agent, who.is_admin))

    def _check_endpoint(self, endpoint: str) -> None:
        if endpoint == PULL:
            return
        allowed = ("https",) if self.https_only else ("https", "http")
        try:
            parts = urlsplit(endpoint)
            good = parts.scheme in allowed and bool(parts.hostname) and parts.port != 0
        except ValueError:  # an unclosed bracket, a port beyond 65535
            good = False
        if not good:
            raise Invalid(
                f"the endpoint is not a URL of an allowed kind, nor {PULL}", field="endpoint",
                allowed_values=[*allowed, PULL],
            )  # fmt: skip

    @staticmethod
    def _said(metadata: dict[str, Any]) -> dict[str, Any]:
        """The metadata, and what follows from it. Raises `Invalid`."""
        if len(to_json(metadata)) > MOST_METADATA:
            raise Invalid(f"the metadata are longer than {MOST_METADATA} bytes", field="metadata")
        return {
            "metadata": metadata,
            "max_concurrent_tasks": _whole(metadata, "max_concurrent_tasks", DEFAULT_CONCURRENCY, (1, 10_000)),
            "ttl_seconds": _whole(metadata, "ttl_seconds", DEFAULT_TTL_SECONDS, TTL_SECONDS),
        }

    async def _change(self, agent_id: str, step: Callable[[Agent], Agent]) -> Agent:
        """Raises `AgentNotFound`, and what `step` raises."""
        at = self.clock()
        try:
            return await self.store.change(
                Agent, agent_id, step, lambda before, after: machine.changed(before, after, at)
            )
        except NotFound as error:
            raise AgentNotFound(f"no agent {agent_id}", agent_id=agent_id) from error

    async def get(self, agent_id: str) -> Agent:
        """Raises `AgentNotFound`."""
        agent = await self.store.find(Agent, agent_id)
        if agent is None:
            raise AgentNotFound(f"no agent {agent_id}", agent_id=agent_id)
        return agent

    async def own(self, who: Principal, agent_id: str) -> Agent:
        """The agent, if it is this principal's to act for. Raises `AgentNotFound`, `Forbidden`.

        Agents are everybody's to see, so that there is one is no secret.
        """
        agent = await self.get(agent_id)
        if not who.sees(agent.owner):
            raise Forbidden("the agent is another's", agent_id=agent_id)
        return agent

    async def update(
        self, who: Principal, agent_id: str, *, display_name: str | None = None, public_key: str | None = None,
        endpoint: str | None = None, tags: Sequence[str] | None = None, metadata: dict[str, Any] | None = None,
        signed: str = "", signed_by_new: str = "",
    ) -> Agent:  # fmt: skip
        """What is given changes; metadata key by key, where null takes one away. Raises as `machine.update`."""
        await self.own(who, agent_id)
        if endpoint is not None:
            self._check_endpoint(endpoint)
        given = {"display_name": display_name, "public_key": public_key, "endpoint": endpoint, "tags": tags}
        given = {name: value for name, value in given.items() if value is not None}
        if tags is not None:
            given["tags"] = tuple(tags)

        def step(agent: Agent) -> Agent:
            change = dict(given)
            if metadata is not None:
                merged = agent.metadata | metadata
                change |= self._said({name: value for name, value in merged.items() if value is not None})
            return machine.update(agent, change, signed, signed_by_new, who.is_admin)

        return await self._change(agent_id, step)

    async def deactivate(
        self, who: Principal, agent_id: str, reason: str = "", release: bool = False
    ) -> tuple[Agent, int]:
        """Take the agent out; what it was given and did not take yet goes back, with `release` all that it holds.

        The rest it may still finish. Returns it, and how many tasks went back.
        """
        await self.own(who, agent_id)
        agent = await self._change(agent_id, lambda a: machine.retire(a, reason or "its owner deactivated it"))
        states = HELD if release else frozenset({TaskState.ASSIGNED})
        back = 0
        ids = await self.store.ids(Task, "held", agent_id)
        for start in range(0, len(ids), RELEASED):
            found = await self.store.load_many(Task, ids[start : start + RELEASED])
            theirs = [(task, version) for task, version in found if task.state in states and task.agent_id == agent_id]
            back += await self._give_back(theirs)
        return agent, back

    async def _give_back(self, held: Sequence[tuple[Task, str]]) -> int:
        at = self.clock()
        steps = [(task, tasks.release(task, task.attempt, at), version) for task, version in held]
        writes = [Write(task, after, version, changed(task, after)) for task, after, version in steps]
        won = await self.store.commit_each(writes)
        for (task, _, _), done in zip(steps, won, strict=True):
            if not done:  # it has moved meanwhile; if only its progress has, it still goes back
                try:
                    await self.store.change(
                        Task, task.task_id, lambda t, attempt=task.attempt: tasks.release(t, attempt, at), changed
                    )
                except (Conflict, NotFound):
                    continue
        return len(steps)

    async def heartbeat(
        self, who: Principal, agent_id: str, health: Health = "ACTIVE", metrics: dict[str, Any] | None = None,
        resources: dict[str, Any] | None = None,
    ) -> Agent:  # fmt: skip
        """From now on its silence means something. Raises `AgentNotFound`, `Forbidden`, `Invalid`, `Conflict`."""
        await self.own(who, agent_id)
        for field, value in (("metrics", metrics), ("resources", resources)):
            if value and len(to_json(value)) > MOST_METADATA:
                raise Invalid(f"the {field} are longer than {MOST_METADATA} bytes", field=field)
        at = self.clock()
        return await self._change(agent_id, lambda a: machine.heartbeat(a, at, health, metrics, resources))

    async def polled(self, who: Principal, agent_id: str, waits: float = 0.0) -> Agent:
        """An agent that asks for tasks, and waits so many seconds. Raises `AgentNotFound`, `Forbidden`, `Conflict`."""
        agent = await self.own(who, agent_id)
        if not agent.pulls:
            raise Conflict(f"tasks are sent to this agent: its endpoint is not {PULL}", agent_id=agent_id)
        at = self.clock()
        if machine.seen(agent, at, waits) is agent:
            return agent
        return await self._change(agent_id, lambda a: machine.seen(a, at, waits))

    async def heard(self, agent_id: str) -> None:
        """The agent reports on a task by the task's token: a sign of life. Never raises for the agent's sake."""
        at = self.clock()
        last = self._heard.get(agent_id)
        if not agent_id or (last is not None and (at - last).total_seconds() < machine.HEARD_SECONDS):
            return
        if len(self._heard) >= REMEMBERED:
            self._heard.clear()
        self._heard[agent_id] = at
        try:
            await self._change(agent_id, lambda a: a if a.retired else machine.seen(a, at))
        except AgentNotFound:
            return

    async def page(self, wanted: Wanted | None = None, offset: int = 0, limit: int = 50) -> tuple[list[Found], int]:
        """Agents with what a list shows beside them, and how many there are in all: see `finding`."""
        return await Finder(self.store, self.trust, self.clock).page(wanted or Wanted(), offset, limit)

    async def found(self, agent_id: str) -> Found:
        """The agent with what a list shows beside it. Raises `AgentNotFound`."""
        [found] = await Finder(self.store, self.trust, self.clock).beside([await self.get(agent_id)], load=True)
        return found

    async def load(self, agent_id: str) -> int:
        """How many tasks the agent holds."""
        return await self.store.count(Task, "held", agent_id)


def _whole(metadata: dict[str, Any], name: str, default: int, bounds: tuple[int, int]) -> int:
    wanted = metadata.get(name, default)
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not bounds[0] <= wanted <= bounds[1]:
        raise Invalid(f"{name} is a whole number from {bounds[0]} to {bounds[1]}", field=f"metadata.{name}")
    return wanted
