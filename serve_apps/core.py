"""The services that a request may call, built once per replica and handed to the gateway."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import HTTPConnection

from cluster.clock import Clock, utc_now
from cluster.errors import Unavailable
from cluster.idempotency import Idempotency
from cluster.identity.service import Identity
from cluster.identity.usage import Usage
from cluster.limits.limiter import Limiter
from cluster.settings import Settings
from cluster.store import Store
from serve_apps.kit.call import call_of
from serve_apps.kit.census import Census
from serve_apps.kit.connections import Connections
from serve_apps.kit.fresh import Fresh
from serve_apps.kit.hub import Hub
from serve_apps.kit.machine import first_gpu
from serve_apps.kit.metrics import Metrics
from serve_apps.kit.readiness import Readiness
from serve_apps.kit.waits import Waits


@dataclass(frozen=True)
class Absent:
    """Stands for a service that this replica does not have: asking it for anything is `Unavailable`."""

    service: str

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise Unavailable(f"this replica has no {self.service}", component=self.service)


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
    idempotency: Idempotency = field(init=False)
    connections: Connections = field(init=False)
    waits: Waits = field(init=False)
    usage: Usage = field(init=False)
    metrics: Metrics = field(default_factory=Metrics)
    census: Census = field(init=False)
    gpu: Fresh[dict[str, Any] | None] = field(default_factory=first_gpu)
    # Services of the packages to the left, and the chat of a replica that holds the engine.
    tasks: Any = Absent("tasks")
    workers: Any = Absent("workers")
    trust: Any = Absent("trust")
    audit: Any = Absent("audit")
    webhooks: Any = Absent("webhooks")
    routing: Any = Absent("routing")
    explainer: Any = Absent("explainer")  # why a task is where it is
    chains: Any = Absent("chains")
    schedules: Any = Absent("schedules")
    templates: Any = Absent("templates")
    forge: Any = Absent("forge")
    models: Any = Absent("models")
    chat: Any = Absent("chat")
    knowledge: Any = Absent("knowledge")
    farm: Any = Absent("farm")
    desk: Any = Absent("farm")  # where farm clients are connected

    def __post_init__(self) -> None:
        self.idempotency = Idempotency(self.store, self.clock)
        self.usage = Usage(self.store, self.clock)
        self.census = Census(self.store, self.metrics, self.clock)
        self.metrics.watch(
            "village_identity_lookups", "Credentials that a process remembered (hit), or had to look up (miss)",
            "result", lambda: self.identity.lookups,
        )  # fmt: skip
        self.connections = Connections(self.identity, self.limiter.policy.sockets)
        self.waits = Waits(self.store, self.hub, self.identity, self.clock)

    async def start(self) -> None:
        """What has to run before the first request."""
        await self.identity.start()

    async def close(self) -> None:
        """Give back what was opened."""
        if self.webhooks:
            await self.webhooks.close()
        await self.usage.close()
        if self.audit:
            await self.audit.close()
        await self.waits.close()
        await self.connections.close()
        if self.desk:
            await self.desk.close()
        await self.hub.close()
        await self.limiter.close()
        await self.store.close()


async def _core(connection: HTTPConnection) -> Core:
    return call_of(connection.scope).core


FromCore = Annotated[Core, Depends(_core)]
