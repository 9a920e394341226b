"""The loop that takes silent agents for gone: their registration is soft once they have sent a heartbeat."""

import asyncio
import logging
from datetime import datetime

from cluster.clock import Clock, utc_now
from cluster.errors import NotFound, Unavailable
from cluster.settings import Settings
from cluster.store import Store
from cluster.workers import machine
from cluster.workers.model import Agent

log = logging.getLogger("village.presence")
EVERY_SECONDS = 1.0
AT_ONCE = 200


class Expiry:
    """Killed anywhere, the next one goes on: who is silent stands in an index."""

    def __init__(self, store: Store, clock: Clock = utc_now) -> None:
        self.store, self.clock = store, clock
        self.since = clock()  # nobody is blamed for silence while the village itself was away

    async def step(self) -> int:
        """Deactivate the agents that are silent for too long; how many."""
        at, gone, spared = self.clock(), 0, 0
        while True:
            ids = await self.store.ids(Agent, "expiry", high=at.timestamp(), offset=spared, limit=AT_ONCE)
            for agent_id in ids:
                try:
                    lapsed = (await self._lapse(agent_id, at)).status == "inactive"
                except NotFound:
                    continue
                gone, spared = gone + lapsed, spared + (not lapsed)
            if len(ids) < AT_ONCE:
                return gone

    async def _lapse(self, agent_id: str, at: datetime) -> Agent:
        return await self.store.change(
            Agent, agent_id, lambda agent: machine.lapse(agent, at, self.since),
            lambda before, after: machine.changed(before, after, at),
        )  # fmt: skip


async def keep_presence(store: Store, _: Settings) -> None:
    """The loop, for ever."""
    expiry = Expiry(store)
    while True:
        try:
            await expiry.step()
        except Unavailable:
            log.warning("the store does not answer: nobody is taken for silent meanwhile")
            expiry.since = expiry.clock()
        await asyncio.sleep(EVERY_SECONDS)
