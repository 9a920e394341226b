"""One part of the task engine in a process of its own, for `benchmarks.tasks`: the loops of `cluster/actors.py`.

    python -m benchmarks.task_parts router|ledger|stream|worker-0|agents-100 REDIS_URL [PROFILE]

`agents-N` is an HTTP endpoint that answers every task at once; it prints its port. PROFILE: where the profile of the
part is written when it is ended with SIGTERM.
"""

import asyncio
import cProfile
import os
import pstats
import signal
import sys

import uvloop
from aiohttp import web

from cluster import heap
from cluster.actors import LOOPS
from cluster.events.keeping import keep
from cluster.routing.router import Router
from cluster.settings import Settings
from cluster.store import Store
from cluster.store.shared import SharedStore
from cluster.tasks.delivery import Delivery
from cluster.trust.service import LedgerKeeper, Trust
from cluster.workers.pool import PoolWorker
from cluster.workers.work import configured, resolve


async def run(name: str, url: str) -> None:
    """For ever."""
    store = Store(url)
    heap.settle()
    if name == "router":
        await Router(store, Trust(store), Delivery("http://127.0.0.1:1", public_only=False)).run()
    elif name == "ledger":
        heap.stand_back()
        await keep(LedgerKeeper(SharedStore(url, linger_seconds=0.02)))
    elif name == "stream":
        shared = SharedStore(url)
        await asyncio.gather(*(loop(shared, Settings(redis_url=url)) for loop in LOOPS))
    elif name.startswith("agents"):
        await endpoint()
    else:
        config = configured(Settings().workers_config)
        await PoolWorker(store, config.agent_id, name.removeprefix("worker-"), resolve(config.callables)).run()


async def endpoint() -> None:
    """Does nothing with a task but answer it."""

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({"status": "COMPLETED", "result_data": {}})

    app = web.Application()
    app.add_routes([web.post("/{agent}", answer)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """The command line."""
    name, url, *profile = sys.argv[1:]
    if profile:
        measured = cProfile.Profile()

        def write(*_: object) -> None:
            measured.disable()
            with open(profile[0], "w") as out:
                pstats.Stats(measured, stream=out).sort_stats("tottime").print_stats(60)
            os._exit(0)

        signal.signal(signal.SIGTERM, write)
        measured.enable()
    uvloop.run(run(name, url))


if __name__ == "__main__":
    main()
