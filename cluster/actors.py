"""The Ray actors of the core: each builds a plain class from Settings, runs its loop, and does nothing else."""

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import ray
import uvloop
from ray.exceptions import RayError

from cluster import heap, logs, tracing
from cluster.audit.keeper import keep_audit
from cluster.events.keeping import keep
from cluster.farm.keeper import keep_farm
from cluster.routing.router import Router
from cluster.settings import Settings
from cluster.store import Store
from cluster.store.shared import SharedStore
from cluster.tasks.archive import FOLDER, TaskArchive
from cluster.tasks.delivery import Delivery
from cluster.tasks.finished import Finished
from cluster.tasks.mover import move_tasks
from cluster.tasks.verifier import verify_tasks
from cluster.trust.service import LedgerKeeper, Trust
from cluster.webhooks.dispatcher import dispatch
from cluster.workers.keeper import PoolKeeper
from cluster.workers.pool import PoolWorker
from cluster.workers.presence import keep_presence
from cluster.workers.work import PoolConfig, configured, resolve
from cluster.workflows.chains.runner import run_chains
from cluster.workflows.schedules.scheduler import run_schedules

NAMESPACE = "village"
log = logging.getLogger("village.actors")


class Keeper:
    """A process that runs one loop. When the loop ends, so does the process, and Ray starts another."""

    PART = ""

    def __init__(self) -> None:
        logs.configure(self.PART)
        tracing.configure(Settings(), self.PART)
        heap.settle()
        threading.Thread(target=self._forever, daemon=True).start()

    def _forever(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self.main())
        except BaseException:
            log.exception("%s ended", type(self).__name__)
        os._exit(1)

    async def main(self) -> None:
        """The loop."""
        raise NotImplementedError

    def pid(self) -> int:
        """Where it runs; answering at all says that the actor is up."""
        return os.getpid()


class RouterKeeper(Keeper):
    """Routes and delivers tasks."""

    PART = "router"

    async def main(self) -> None:
        """See `Router.run`."""
        settings = Settings()
        store = Store(settings.redis)
        delivery = Delivery(settings.url, public_only=settings.profile == "production")
        finished = Finished(store, TaskArchive(settings.home / FOLDER))
        await Router(store, Trust(store), delivery, finished=finished).run()


class TrustKeeper(Keeper):
    """Keeps the trust ledger."""

    PART = "ledger"

    async def main(self) -> None:
        """See `LedgerKeeper`."""
        heap.stand_back()
        await keep(LedgerKeeper(SharedStore(Settings().redis, linger_seconds=0.02)))


class StreamKeeper(Keeper):
    """Everything else that reads the event stream and keeps something: the audit log, webhooks."""

    PART = "stream"

    async def main(self) -> None:
        """Each of them in a loop of its own; the first to end takes the process, and all start again."""
        settings = Settings()
        store = SharedStore(settings.redis)
        await asyncio.gather(*(loop(store, settings) for loop in LOOPS))


class WorkerKeeper(Keeper):
    """A worker of the pool: runs the callables of configs/workers.yaml."""

    PART = "worker"

    def __init__(self, name: str) -> None:
        self.name = name
        self.worker: PoolWorker | None = None
        self.left = False
        super().__init__()

    async def main(self) -> None:
        """See `PoolWorker.run`. It ends when the worker is retired."""
        settings = Settings()
        config = configured(settings.workers_config)
        self.worker = PoolWorker(Store(settings.redis), config.agent_id, self.name, resolve(config.callables))
        await self.worker.run()
        self.left = True
        await asyncio.Event().wait()  # ending here would have Ray start it again

    def has_left(self) -> bool:
        """Whether it was retired and has nothing in hand."""
        return self.left

    def retire(self) -> None:
        """Finish what is in hand, and take nothing more."""
        if self.worker is not None:
            self.worker.retire()


class RayHands:
    """Workers as Ray actors, detached: they outlive whoever keeps them."""

    PREFIX = "worker-"

    def __init__(self, config: PoolConfig, environment: dict[str, str]) -> None:
        self.config, self.environment = config, environment
        self.leaving: set[str] = set()

    async def names(self) -> list[str]:
        """See `Hands`."""
        alive = set(await asyncio.to_thread(ray_workers))
        for name in self.leaving & alive:
            if await asyncio.to_thread(self._ended, name):
                alive.discard(name)
        self.leaving &= alive
        return sorted(alive - self.leaving)

    def _ended(self, name: str) -> bool:
        """Whether a retired worker has nothing left in hand; if so it is gone."""
        try:
            actor = ray.get_actor(self.PREFIX + name, namespace=NAMESPACE)
            if not ray.get(actor.has_left.remote(), timeout=5):
                return False
            ray.kill(actor)
        except (ValueError, RayError):
            pass
        return True

    async def start(self, name: str) -> None:
        """See `Hands`."""
        if name in self.leaving:
            return
        actor = ray.remote(num_cpus=self.config.cpus_per_worker, max_restarts=-1)(WorkerKeeper)
        await asyncio.to_thread(
            lambda: actor.options(
                name=self.PREFIX + name, namespace=NAMESPACE, lifetime="detached", get_if_exists=True,
                runtime_env={"env_vars": self.environment},
            ).remote(name)
        )  # fmt: skip

    async def retire(self, name: str) -> None:
        """See `Hands`."""
        self.leaving.add(name)
        await asyncio.to_thread(lambda: ray.get_actor(self.PREFIX + name, namespace=NAMESPACE).retire.remote())

    async def most(self) -> int:
        """The cores of the cluster."""
        return max(1, int((await asyncio.to_thread(ray.cluster_resources)).get("CPU", 1)))


def ray_workers() -> list[str]:
    """The names of the workers that there are."""
    named: Any = ray.util.list_named_actors(all_namespaces=True)
    mine = [actor["name"] for actor in named if actor["namespace"] == NAMESPACE]
    return [name.removeprefix(RayHands.PREFIX) for name in mine if name.startswith(RayHands.PREFIX)]


class WorkersKeeper(Keeper):
    """Keeps the pool of workers."""

    PART = "workers"

    async def main(self) -> None:
        """See `PoolKeeper.run`."""
        settings = Settings()
        config = configured(settings.workers_config)
        hands = RayHands(config, settings.environment() | {"VILLAGE_CHILD": "1"})
        await PoolKeeper(Store(settings.redis), config, hands).run()


LOOPS: tuple[Callable[[Store, Settings], Awaitable[None]], ...] = (
    keep_audit, dispatch, run_chains, run_schedules, keep_farm, keep_presence, verify_tasks, move_tasks,
)  # fmt: skip

RouterActor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(RouterKeeper)
TrustActor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(TrustKeeper)
StreamActor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(StreamKeeper)
WorkersActor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(WorkersKeeper)
ACTORS: dict[str, Any] = {
    "router": RouterActor, "ledger": TrustActor, "stream": StreamActor, "workers": WorkersActor
}  # fmt: skip


def start_all(environment: dict[str, str]) -> dict[str, Any]:
    """Every actor of the core, detached, those that run already as they are."""
    runtime = {"env_vars": environment}
    return {
        name: actor.options(
            name=name, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, runtime_env=runtime
        ).remote()
        for name, actor in ACTORS.items()
    }
