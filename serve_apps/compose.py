"""Putting a Core together from Settings: the only place that knows which class serves which part."""

from typing import Any

from cluster.audit.archive import FOLDER, Archive
from cluster.audit.service import Audit
from cluster.clock import utc_now
from cluster.egress import Egress
from cluster.farm.service import Farm
from cluster.identity.service import Identity
from cluster.launcher import RayLauncher
from cluster.limits import policy
from cluster.limits.limiter import Limiter
from cluster.routing.service import Routing
from cluster.settings import Settings
from cluster.store import Store
from cluster.tasks.archive import FOLDER as TASKS
from cluster.tasks.archive import TaskArchive
from cluster.tasks.explain import Explainer
from cluster.tasks.service import Tasks
from cluster.trust.service import Trust
from cluster.webhooks.service import Webhooks
from cluster.workers.service import Workers
from cluster.workflows.chains.service import Chains
from cluster.workflows.schedules.service import Schedules
from cluster.workflows.templates.service import Templates
from serve_apps.chat.build import build_chat
from serve_apps.chat.engine import ChatEngine
from serve_apps.chat.metered import Metered
from serve_apps.core import Core
from serve_apps.dialects.aifarm.desk import Desk
from serve_apps.kit.hub import Hub
from serve_apps.kit.metrics import Metrics
from serve_apps.kit.readiness import Probe, Readiness, heartbeat, reachable
from train.models import Models
from train.service import Forge

PARTS = (  # each beats; /readiness looks
    "router", "ledger", "workers", "audit", "webhooks", "chains", "schedules", "verification", "farm", "forge", "chat",
    "knowledge",
)  # fmt: skip


def build_forge(settings: Settings, store: Store) -> Forge:
    """Training, with Ray jobs as its processes."""
    launcher = RayLauncher(settings.dashboard)
    return Forge(store, launcher, settings, utc_now, Models(store, utc_now))


async def build_core(settings: Settings, engine: ChatEngine, knowledge: Any) -> Core:
    """A Core over the village's Redis; `engine` and `knowledge` live here or are reached over a handle."""
    store = Store(settings.redis)
    trust, forge, metrics = Trust(store), build_forge(settings, store), Metrics()
    tasks = Tasks(store, archive=TaskArchive(settings.home / TASKS))
    probes: dict[str, Probe] = {"redis": reachable(store)} | {name: heartbeat(store, name) for name in PARTS}
    hub, farm = Hub(store), Farm(store, trust, settings)
    return Core(
        settings=settings,
        store=store,
        identity=Identity(store),
        limiter=Limiter(settings.redis, policy.load()),
        hub=hub,
        readiness=Readiness(probes),
        metrics=metrics,
        tasks=tasks,
        chains=Chains(store, tasks),
        schedules=Schedules(store, tasks),
        templates=Templates(store, tasks),
        workers=Workers(store, trust, https_only=settings.profile == "production"),
        trust=trust,
        explainer=Explainer(store, tasks, trust),
        audit=Audit(store, Archive(settings.home / FOLDER)),
        webhooks=Webhooks(store, Egress(public_only=settings.profile == "production")),
        routing=Routing(store, trust),
        forge=forge,
        models=forge.models,
        chat=await build_chat(settings, store, forge.models, Metered(engine, metrics.registry)),
        knowledge=knowledge,
        farm=farm,
        desk=Desk(hub, farm),
    )
