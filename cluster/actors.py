"""The Ray actors of the core: each builds a plain class from Settings, runs its loop, and does nothing else."""

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import ray

from cluster import heap, logs, tracing
from cluster.audit.keeper import keep_audit
from cluster.events.keeping import keep
from cluster.routing.router import Router
from cluster.settings import Settings
from cluster.store import Store
from cluster.tasks.delivery import Delivery
from cluster.trust.service import LedgerKeeper, Trust
from cluster.webhooks.dispatcher import dispatch

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
            asyncio.run(self.main())
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
        await Router(store, Trust(store), delivery).run()


class TrustKeeper(Keeper):
    """Keeps the trust ledger."""

    PART = "ledger"

    async def main(self) -> None:
        """See `LedgerKeeper`."""
        await keep(LedgerKeeper(Store(Settings().redis)))


class StreamKeeper(Keeper):
    """Everything else that reads the event stream and keeps something: the audit log, webhooks."""

    PART = "stream"

    async def main(self) -> None:
        """Each of them in a loop of its own; the first to end takes the process, and all start again."""
        settings = Settings()
        store = Store(settings.redis)
        await asyncio.gather(*(loop(store, settings) for loop in LOOPS))


LOOPS: tuple[Callable[[Store, Settings], Awaitable[None]], ...] = (keep_audit, dispatch)

RouterActor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(RouterKeeper)
TrustActor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(TrustKeeper)
StreamActor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(StreamKeeper)
ACTORS: dict[str, Any] = {"router": RouterActor, "ledger": TrustActor, "stream": StreamActor}


def start_all(environment: dict[str, str]) -> dict[str, Any]:
    """Every actor of the core, detached, those that run already as they are."""
    runtime = {"env_vars": environment}
    return {
        name: actor.options(
            name=name, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, runtime_env=runtime
        ).remote()
        for name, actor in ACTORS.items()
    }
