"""Requests that wait for something to happen: how many, how long, and what ends them before their time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.types import Receive

from cluster.clock import Clock, utc_now
from cluster.identity.service import Identity
from cluster.limits.policy import Sockets
from cluster.store import Store
from cluster.workers.pulling import Pulling
from serve_apps.kit.admission import address_of
from serve_apps.kit.auth import credential
from serve_apps.kit.call import call_of
from serve_apps.kit.connections import Connection, Connections
from serve_apps.kit.endings import Endings
from serve_apps.kit.hub import Hub

LONGEST_SECONDS = 60
LIMITS = Sockets(per_caller=2000, per_process=5000)  # a fleet of agents has one key


class Waits:
    """All waiting requests of this process, and what they wait for."""

    def __init__(self, store: Store, hub: Hub, identity: Identity, clock: Clock = utc_now) -> None:
        self.connections = Connections(identity, LIMITS)
        self.endings, self.pulling = Endings(hub), Pulling(store, clock)
        self.most_seconds = float(LONGEST_SECONDS)

    def seconds(self, asked: float) -> float:
        """How long a request may wait that asks for this."""
        return min(asked, self.most_seconds)

    @asynccontextmanager
    async def watched(self, request: Request, leave: Callable[[], None]) -> AsyncIterator[None]:
        """Call `leave` once the caller has gone, its credential is no longer good, or the replica ends.

        Raises `LimitExceeded`, `Unavailable` where there are too many.
        """
        call = call_of(request.scope)
        call.lasting = True
        with self.connections.enter(call.principal, credential(request.scope), address_of(request.scope)) as connection:
            watching = asyncio.create_task(_watch(connection, request.receive, leave))
            try:
                yield
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)

    async def close(self) -> None:
        """Have all of them answered, and take no more."""
        await self.connections.close()
        await self.pulling.close()
        self.endings.close()


async def _watch(connection: Connection, receive: Receive, leave: Callable[[], None]) -> None:
    async with connection.life():
        while (await receive())["type"] != "http.disconnect":
            pass
    leave()
