"""Webhooks: deliveries a second through one dispatcher, and the time from an event to its receipt.

    python -m benchmarks.webhooks [--events 2000] [--rounds 3]

A Redis of its own, one dispatcher, and a receiver in a process of its own that answers 200 at once. The peer is aiohttp
alone in the same run: a body of the same size, posted to the same receiver with as many calls at once as one webhook
may have. It reads no stream, signs nothing and writes nothing down.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import aiohttp
from aiohttp import web

from cluster.clock import utc_now
from cluster.egress import Egress
from cluster.errors import Unavailable
from cluster.events import Event
from cluster.identity.model import SYSTEM
from cluster.store import Store, server
from cluster.webhooks import sender, signing
from cluster.webhooks.dispatcher import Dispatcher
from cluster.webhooks.model import Delivery, Webhook
from cluster.webhooks.service import Webhooks

RESULTS = Path(__file__).parent / "results" / "webhooks.json"
DATA = {
    "task_id": "task_0123456789abcdef01234567", "client_id": "bench", "task_type": "sum", "status": "COMPLETED",
    "capability": "sums:v1", "agent_id": "agent_1", "attempt": 1, "waiting": False, "outcome": "COMPLETED",
    "execution_time_seconds": 1.25, "timeout_seconds": 300, "error": "",
}  # fmt: skip
HOOKS = (1, 10)
PACED, PACED_EVENTS = 0.02, 250  # an event every 20 ms: nothing waits for the one before
CALM_SECONDS = 0.2


def receive() -> None:
    """The receiver's process: prints its port, then says at `/seen` how many came and how old each event was."""
    ages: list[float] = []

    async def hook(request: web.Request) -> web.Response:
        sent = json.loads(await request.read())["data"].get("sent_at")
        ages.append(time.time() - sent if sent else 0.0)
        return web.Response()

    async def seen(_: web.Request) -> web.Response:
        found = ages[:]
        ages.clear()
        return web.json_response(found)

    async def serve() -> None:
        app = web.Application()
        app.add_routes([web.post("/hook", hook), web.get("/seen", seen)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())


class Bench:
    """A store, a service, and the receiver's address."""

    def __init__(self, redis_url: str, url: str) -> None:
        self.store, self.url = Store(redis_url), url
        self.egress = Egress(public_only=False)
        self.webhooks = Webhooks(self.store, self.egress)
        self.session = aiohttp.ClientSession()

    async def seen(self) -> list[float]:
        """Ages in seconds of what has arrived since the last time."""
        async with self.session.get(f"{self.url}/seen") as answer:
            return await answer.json()

    async def hooks(self, count: int) -> list[Webhook]:
        """New webhooks at the receiver."""
        await self.store._redis.flushall()
        asked = [
            self.webhooks.create(SYSTEM, url=f"{self.url}/hook", filters=["task.*"], secret="benchmark secret")
            for _ in range(count)
        ]
        return [hook for hook, _ in await asyncio.gather(*asked)]

    async def happens(self, **more: float) -> None:
        """One event."""
        event = Event(kind="task.failed", subject="task_1", owner=SYSTEM.owner, at=utc_now(), data=DATA | more)
        await self.store.publish(event)

    async def while_dispatching(self, work: Callable[[Dispatcher], Awaitable[float]]) -> float:
        """What `work` returns, with a dispatcher that runs meanwhile."""
        store = Store(self.store.url)
        dispatcher = Dispatcher(store, self.egress)
        running = asyncio.create_task(dispatcher.run())
        try:
            return await work(dispatcher)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            await store.close()

    async def rate(self, count: int, events: int) -> float:
        """Deliveries a second, written down, of a burst that waits when the dispatcher begins."""
        hooks = await self.hooks(count)
        each = events // count
        for _ in range(each):
            await self.happens()

        async def drain(dispatcher: Dispatcher) -> float:
            begun = time.perf_counter()
            while True:
                await asyncio.sleep(0.01)
                if dispatcher.sender.counts["delivered"] == each * count:
                    return each * count / (time.perf_counter() - begun)

        found = await self.while_dispatching(drain)
        kept = await self.store.counts(Delivery, "list", [(hook.webhook_id, "delivered") for hook in hooks])
        arrived = await self.seen()
        assert kept == [each] * count and len(arrived) == each * count, "one delivery, one receipt for each event"
        return found

    async def ages(self) -> list[float]:
        """Milliseconds from the event to its receipt, one event at a time."""
        await self.hooks(1)

        async def pace(dispatcher: Dispatcher) -> float:
            await asyncio.sleep(CALM_SECONDS)
            for _ in range(PACED_EVENTS):
                await self.happens(sent_at=time.time())
                await asyncio.sleep(PACED)
            await asyncio.sleep(CALM_SECONDS)
            return float(dispatcher.sender.counts["delivered"])

        await self.while_dispatching(pace)
        return [age * 1000 for age in await self.seen()]

    async def bare(self, posts: int) -> float:
        """The peer: posts a second."""
        made = Delivery(
            delivery_id="dlv_1", webhook_id="wh_" + "0" * 24, event="task.failed", event_id="evt_1-0", data=DATA,
            created_at=utc_now(),
        )  # fmt: skip
        content, left = signing.body(made, "benchmark secret"), iter(range(posts))

        async def work() -> None:
            for _ in left:
                async with self.session.post(f"{self.url}/hook", data=content) as answer:
                    await answer.read()

        begun = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(sender.EACH)))
        took = time.perf_counter() - begun
        await self.seen()
        return posts / took

    async def close(self) -> None:
        """Give the connections back."""
        await self.session.close()
        await self.egress.close()
        await self.store.close()


async def measure(redis_url: str, url: str, events: int, rounds: int) -> dict[str, list[float]]:
    """Every figure of every round; the cells alternate within a round."""
    bench = Bench(redis_url, url)
    found: dict[str, list[float]] = {}
    while True:
        try:
            await bench.store.ping()
            break
        except Unavailable:
            await asyncio.sleep(0.05)
    for _ in range(rounds):
        found.setdefault("aiohttp alone, posts/s", []).append(await bench.bare(events))
        for count in HOOKS:
            name = f"dispatcher, {count} webhook{'s' if count > 1 else ''}, deliveries/s"
            found.setdefault(name, []).append(await bench.rate(count, events))
        ages = sorted(await bench.ages())
        found.setdefault("event to receipt p50, ms", []).append(ages[len(ages) // 2])
        found.setdefault("event to receipt p99, ms", []).append(ages[int(len(ages) * 0.99)])
    await bench.close()
    return found


def main() -> None:
    """Measure, print, write."""
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--events", type=int, default=2000)
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--receiver", action="store_true", help=argparse.SUPPRESS)
    told = ask.parse_args()
    if told.receiver:
        receive()
        return
    command = [sys.executable, "-m", "benchmarks.webhooks", "--receiver"]
    receiver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with tempfile.TemporaryDirectory(prefix="village-bench-") as name:
        socket = Path(name) / "redis.sock"
        redis = server.start(Path(name), socket)
        try:
            assert receiver.stdout is not None
            url = f"http://127.0.0.1:{int(receiver.stdout.readline())}"
            found = asyncio.run(measure(f"unix://{socket}", url, told.events, told.rounds))
        finally:
            for process in (receiver, redis):
                process.kill()
                process.wait()
    for cell, figures in found.items():
        print(f"{cell:44} {min(figures):9.1f} / {statistics.median(figures):9.1f} / {max(figures):9.1f}")
    RESULTS.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
