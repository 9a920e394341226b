"""Putting a gateway's Core together from Settings: the only place that knows which class serves which part."""

from typing import Any

from cluster.clock import utc_now
from cluster.identity.service import Identity
from cluster.limits import policy
from cluster.limits.limiter import Limiter
from cluster.presence import Presence
from cluster.routing.service import Routing
from cluster.settings import Settings
from cluster.store import Store
from cluster.tasks.service import Tasks
from cluster.trust.service import Trust
from cluster.workers.service import Workers
from serve_apps.core import Core
from serve_apps.kit.hub import Hub
from serve_apps.kit.readiness import Probe, Readiness, reachable

PARTS = ("router", "ledger")


def living(store: Store, name: str) -> Probe:
    """Whether a part has given a sign of life lately."""

    async def probe() -> bool:
        presence = await store.find(Presence, name)
        return presence is not None and presence.alive(utc_now())

    return probe


def build_core(settings: Settings, **services: Any) -> Core:
    """A Core over the village's Redis; `services` are those that live elsewhere, or in this replica alone."""
    store = Store(settings.redis)
    trust = Trust(store)
    probes: dict[str, Probe] = {"redis": reachable(store)} | {name: living(store, name) for name in PARTS}
    return Core(
        settings=settings,
        store=store,
        identity=Identity(store),
        limiter=Limiter(settings.redis, policy.load()),
        hub=Hub(store),
        readiness=Readiness(probes),
        tasks=Tasks(store),
        workers=Workers(store, trust, https_only=settings.profile == "production"),
        trust=trust,
        routing=Routing(store, trust),
        **services,
    )
