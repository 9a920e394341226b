"""The services that a request may call, built once per replica and handed to the gateway."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import HTTPConnection

from cluster.clock import Clock, utc_now
from cluster.identity.service import Identity
from cluster.limits.limiter import Limiter
from cluster.settings import Settings
from cluster.store import Store
from serve_apps.kit.call import call_of
from serve_apps.kit.hub import Hub
from serve_apps.kit.metrics import Metrics
from serve_apps.kit.readiness import Readiness


@dataclass
class Core:
    """Routes parse, call one of these, and render."""

    settings: Settings
    store: Store
    identity: Identity
    limiter: Limiter
    hub: Hub
    readiness: Readiness
    clock: Clock = utc_now
    metrics: Metrics = field(default_factory=Metrics)
    # Services of the packages to the left. A replica without one of them does not serve its routes.
    tasks: Any = None
    workers: Any = None
    trust: Any = None
    routing: Any = None
    forge: Any = None
    models: Any = None
    chat: Any = None
    knowledge: Any = None

    async def start(self) -> None:
        """What has to run before the first request."""
        await self.identity.start()

    async def close(self) -> None:
        """Give back what was opened."""
        await self.hub.close()
        await self.limiter.close()
        await self.store.close()


async def _core(connection: HTTPConnection) -> Core:
    return call_of(connection.scope).core


FromCore = Annotated[Core, Depends(_core)]
