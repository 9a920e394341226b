"""The processes of a torture: `python -m cluster.torture.part NAME`, or many of them from one that has imported all.

Without a NAME it reads lines like {"start": "router", "environment": {...}} and forks; its own end ends them all. The
name says what runs: router, ledger, stream, gate-N, worker-N, or an agent of the plan.
"""

import asyncio
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import psutil

from cluster import heap, logs
from cluster.audit.keeper import keep_audit
from cluster.clock import Clock
from cluster.events.keeping import keep
from cluster.routing.router import Router
from cluster.settings import Settings
from cluster.store import Store
from cluster.store.shared import SharedStore
from cluster.tasks.delivery import Delivery
from cluster.tasks.service import Tasks
from cluster.tasks.verifier import verify_tasks
from cluster.torture.agents import PullAgent, PushAgent, callable_of
from cluster.torture.gate import listen
from cluster.torture.notes import Notes, shifted
from cluster.torture.plan import CAPABILITIES, POOL
from cluster.trust.service import LedgerKeeper, Trust
from cluster.webhooks import dispatcher
from cluster.webhooks import machine as webhooks
from cluster.workers.pool import PoolWorker
from cluster.workers.presence import keep_presence
from cluster.workflows.chains.runner import ChainRunner
from cluster.workflows.schedules.scheduler import Scheduler

TORTURE = "VILLAGE_TORTURE"  # JSON: seed, well, room, port
Part = Callable[[str, Store, Settings, Clock], Awaitable[None]]


async def router(name: str, store: Store, settings: Settings, clock: Clock) -> None:
    """As in `cluster.actors`."""
    await Router(store, Trust(store, clock), Delivery(settings.url, public_only=False), clock).run()


async def ledger(name: str, store: Store, settings: Settings, clock: Clock) -> None:
    """As in `cluster.actors`."""
    await keep(LedgerKeeper(store, clock))


async def stream(name: str, store: Store, settings: Settings, clock: Clock) -> None:
    """As in `cluster.actors`. What a dispatcher that is killed had in hand is free again sooner than in earnest."""
    webhooks.TIMEOUT_SECONDS, webhooks.LEASE, dispatcher.RELOAD_SECONDS = 1.0, timedelta(seconds=2), 1.0
    shared = SharedStore(settings.redis)
    tasks = Tasks(shared, clock)
    await asyncio.gather(
        keep_audit(shared, settings), dispatcher.dispatch(shared, settings), keep(ChainRunner(shared, tasks, clock)),
        Scheduler(shared, tasks, clock).run(), keep_presence(shared, settings), verify_tasks(shared, settings),
    )  # fmt: skip


async def gate(name: str, store: Store, settings: Settings, clock: Clock) -> None:
    """A replica of the way in."""
    await listen(store, clock, settings.port)
    await asyncio.Event().wait()


async def worker(name: str, store: Store, settings: Settings, clock: Clock) -> None:
    """A worker of the village."""
    told = json.loads(os.environ[TORTURE])
    work = callable_of(told["seed"], told["well"], POOL, Notes(settings.home / "notes", name))
    await PoolWorker(store, POOL, name, {tag: work for tag in CAPABILITIES}, clock).run()


async def agent(name: str, store: Store, settings: Settings, clock: Clock) -> None:
    """An agent of somebody's own."""
    told = json.loads(os.environ[TORTURE])
    way = name.partition("-")[0]
    kind = PushAgent if way == "push" else PullAgent
    made = kind(name, way, told["seed"], told["well"], settings.url, Notes(settings.home / "notes", name))
    if isinstance(made, PushAgent):
        await made.serve(told["port"])
    else:
        await made.pull(told["room"])


PARTS: dict[str, Part] = {
    "router": router, "ledger": ledger, "stream": stream, "gate": gate, "worker": worker, "push": agent, "pull": agent
}  # fmt: skip


def run(name: str) -> None:
    """Be this part until killed. A loop that ends takes the process with it, as an actor's does."""
    settings = Settings()
    logs.configure(name)
    heap.settle()
    part = PARTS[name.partition("-")[0]]

    async def main() -> None:
        await part(name, Store(settings.redis), settings, shifted())

    asyncio.run(main())


def become(name: str, environment: dict[str, str], log: Path, leash: tuple[int, int]) -> None:
    """In the child: the part and nothing else."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.update(environment)
    os.close(leash[1])
    threading.Thread(target=_held_by, args=(leash[0],), daemon=True).start()
    try:
        run(name)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(1)


def _held_by(leash: int) -> None:
    os.read(leash, 1)  # nobody writes: it returns when the nursery, which has the other end, is gone
    os._exit(1)


def nursery() -> None:
    """Fork a part for each line, until there are no more lines; then end them all."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them: who wants to know looks for the process
    leash = os.pipe()
    for line in sys.stdin:
        told = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(told["start"], told["environment"], Path(told["log"]), leash)
        print(pid, flush=True)
    for child in psutil.Process().children():  # those that are stopped hear of nothing else
        child.kill()


if __name__ == "__main__":
    run(sys.argv[1]) if len(sys.argv) > 1 else nursery()
