"""Keeps the village's pool of workers: registers it as an agent, and starts and retires workers as the queue asks."""

import asyncio
import logging
import time
from typing import Any, Protocol

from cluster.clock import Clock, utc_now
from cluster.errors import Unavailable
from cluster.events import Event
from cluster.presence import BEAT_SECONDS, Presence, beat
from cluster.store import Store
from cluster.tasks.model import Task
from cluster.workers.model import PULL, Agent
from cluster.workers.pool import MOST_AHEAD
from cluster.workers.scaling import wanted
from cluster.workers.work import PoolConfig

log = logging.getLogger("village.pool")


class Hands(Protocol):
    """Whoever can run workers: Ray, or a test's processes."""

    async def names(self) -> list[str]:
        """Of the workers that run, or are about to."""
        ...

    async def start(self, name: str) -> None:
        """Run one more."""
        ...

    async def retire(self, name: str) -> None:
        """Let it finish what it holds, and end it."""
        ...

    async def most(self) -> int:
        """How many the machines can have."""
        ...


class PoolKeeper:
    """See the module. `run` returns only when it is cancelled."""

    NAME = "workers"

    def __init__(self, store: Store, config: PoolConfig, hands: Hands, clock: Clock = utc_now) -> None:
        self.store, self.config, self.hands, self.clock = store, config, hands, clock
        self.busy_at = time.monotonic()

    async def run(self) -> None:
        """Look every two seconds."""
        registered = False
        while True:
            try:
                if not registered:
                    await self.register(await self.hands.most())
                    registered = True
                data = await self.step()
                await beat(self.store, self.NAME, self.clock(), data)
            except Unavailable:
                registered = False
            await asyncio.sleep(BEAT_SECONDS)

    async def register(self, most: int) -> None:
        """Have the agent's record say what the configuration says."""
        config, at = self.config, self.clock()
        room = max(config.workers_min, config.workers_max or most, 1) * MOST_AHEAD
        says: dict[str, Any] = {
            "display_name": config.display_name, "tags": tuple(config.callables), "status": "active",
            "max_concurrent_tasks": min(room, 10_000), "endpoint": PULL,
        }  # fmt: skip
        fresh = Agent(
            agent_id=config.agent_id, owner="user_village", public_key="", created_at=at, last_seen_at=at, **says
        )

        def step(known: Agent) -> Agent:
            return known.model_copy(update=says | {"last_seen_at": at})

        def told(before: Agent, after: Agent) -> Event:
            kind = "agent.registered" if before is fresh else "agent.updated"
            data = {"agent_id": after.agent_id, "tags": list(after.tags), "display_name": after.display_name}
            return Event(kind=kind, subject=after.agent_id, owner=after.owner, at=at, data=data)

        await self.store.upsert(fresh, step, told)

    async def step(self) -> dict[str, Any]:
        """Look once; what the beat says."""
        names, waiting = await self.hands.names(), await self._waiting()
        held = await self.store.count(Task, "held", self.config.agent_id)
        if waiting or held:
            self.busy_at = time.monotonic()
        count = wanted(self.config, await self.hands.most(), len(names), waiting, time.monotonic() - self.busy_at)
        if count > len(names):
            for name in [n for n in map(str, range(count)) if n not in names][: count - len(names)]:
                log.info("starting worker %s: %d tasks wait", name, waiting)
                await self.hands.start(name)
        elif count < len(names):
            self.busy_at = time.monotonic()  # one at a time
            await self.hands.retire(max(names, key=int))
        return {"workers": count, "waiting": waiting, "held": held}

    async def _waiting(self) -> int:
        """Ready tasks of ours that nobody holds, as the router last said."""
        router = await self.store.find(Presence, "router")
        lines = router.data.get("waiting", {}) if router else {}
        return sum(count for capability, count in lines.items() if capability in self.config.callables)
