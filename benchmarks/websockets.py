"""A thousand open WebSockets on one gateway process: memory of each, and how long an event is on its way to them.

    python -m benchmarks.websockets [--sockets 1000] [--seconds 4] [--rounds 3]

The peer is the least that does the same: the `websockets` library's own server with its `broadcast`, fed by Redis
pub/sub; it knows no credential, topic, owner or limit and forgets what nobody was there to hear. Both run under uvloop
behind a Unix socket, as a replica does, and are asked in turn. The clock begins before XADD or PUBLISH and ends when
the bytes are in the client's process, which reads all sockets in one loop and on the same machine.
"""

import argparse
import asyncio
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson
import psutil
import redis.asyncio as redis_asyncio
import uvloop

from cluster.clock import utc_now
from cluster.events.model import Event
from cluster.store import Store, server

RESULTS = Path(__file__).parent / "results" / "websockets.json"
CHANNEL = "bench"
BROADCASTS_PER_SECOND, SINGLES_PER_SECOND = 5, 50
MARK = b'"task_id":"task_'
DATA = {
    "status": "training", "progress": 0.25, "phase": "cognate", "step": 300, "total_steps": 1200, "model_id": "model_1",
    "metrics": {"loss": 3.642413139343262, "learning_rate": 0.00013333333333333334, "tokens_per_second": 3986.3813068},
}  # fmt: skip


class Client(asyncio.Protocol):
    """One socket, read with as little as possible: a frame's mark and the time when it came."""

    def __init__(self, hello: bytes, subscribe: bytes, seen: dict[int, list[float]]) -> None:
        self.hello, self.subscribe, self.seen = hello, subscribe, seen
        self.buffer = b""
        self.opened = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        """See asyncio."""
        self.transport = transport
        transport.write(self.hello)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        at = time.perf_counter()
        self.buffer += data
        if not self.opened:
            head, found, self.buffer = self.buffer.partition(b"\r\n\r\n")
            if not found:
                self.buffer = head
                return
            assert b" 101 " in head[:16], head
            self.opened = True
            self.transport.write(frame(self.subscribe))
        while (body := self._next()) is not None:
            place = body.find(MARK)
            if place >= 0:
                begin = place + len(MARK)
                self.seen.setdefault(int(body[begin : body.index(b'"', begin)]), []).append(at)
            elif b'"subscribed"' in body and not self.ready.done():
                self.ready.set_result(None)

    def _next(self) -> bytes | None:
        """The payload of the next frame; a server's frames are not masked."""
        if len(self.buffer) < 4:
            return None
        length, begin = self.buffer[1], 2
        if length == 126:
            length, begin = int.from_bytes(self.buffer[2:4], "big"), 4
        if len(self.buffer) < begin + length:
            return None
        body, self.buffer = self.buffer[begin : begin + length], self.buffer[begin + length :]
        return body


def frame(text: bytes) -> bytes:
    """A client's text frame, under a mask of zeros."""
    head = bytes([0x81, 0x80 | len(text)]) if len(text) < 126 else bytes([0x81, 0xFE]) + len(text).to_bytes(2, "big")
    return head + bytes(4) + text


class Server:
    """A child with a server in it."""

    def __init__(self, name: str, folder: Path, url: str, sockets: int) -> None:
        self.name, self.path, self.url = name, str(folder / f"{name}.sock"), url
        self.child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.websockets", "serve", name, self.path, url, str(sockets)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.child.stdout is not None
        self.keys: list[str] = json.loads(self.child.stdout.readline())  # an admin's, then one of each owner
        self.process = psutil.Process(self.child.pid)

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        times = self.process.cpu_times()
        return times.user + times.system

    def memory(self) -> int:
        """Resident bytes."""
        return self.process.memory_info().rss

    def hello(self, key: str) -> bytes:
        """The opening handshake."""
        nonce = base64.b64encode(os.urandom(16)).decode()
        lines = (
            "GET /ws HTTP/1.1", "Host: village", "Upgrade: websocket", "Connection: Upgrade",
            f"Sec-WebSocket-Key: {nonce}", "Sec-WebSocket-Version: 13", f"X-API-Key: {key}", "", "",
        )  # fmt: skip
        return "\r\n".join(lines).encode()

    async def open(self, each_its_own: bool, sockets: int, seen: dict[int, list[float]]) -> list[Client]:
        """Subscribed sockets: of one admin, or of as many owners."""
        keys = self.keys[1:] if each_its_own else self.keys[:1] * sockets
        loop, opened = asyncio.get_running_loop(), []
        for begin in range(0, len(keys), 50):  # a listen queue holds so many at once
            several = []
            for number, key in enumerate(keys[begin : begin + 50], begin):
                ask: dict[str, Any] = {"type": "subscribe", "topics": ["training_progress"]}
                if self.name == "bare":
                    ask["owner"] = f"client_{number}" if each_its_own else "all"

                def made(hello: bytes = self.hello(key), text: bytes = orjson.dumps(ask)) -> Client:
                    return Client(hello, text, seen)

                _, client = await loop.create_unix_connection(made, self.path)
                several.append(client)
            async with asyncio.timeout(30):
                await asyncio.gather(*(client.ready for client in several))
            opened += several
        return opened


class Sender:
    """Makes things happen, and knows when."""

    def __init__(self, url: str) -> None:
        self.store, self.redis = Store(url), redis_asyncio.Redis.from_url(url)
        self.sent: dict[int, float] = {}
        self.seen: dict[int, list[float]] = {}

    async def send(self, name: str, owner: str) -> int:
        """One event of this owner. Its number goes with it."""
        number = len(self.sent)
        event = Event(kind="training.progress", subject=f"task_{number}", owner=owner, at=utc_now(), data=DATA)
        told = {"owner": owner, "type": "training_progress", "task_id": event.subject, "timestamp": "2026-01-01"} | DATA
        ready = orjson.dumps(told)
        self.sent[number] = time.perf_counter()
        if name == "bare":
            await self.redis.publish(CHANNEL, ready)
        else:
            await self.store.publish(event)
        return number

    async def pace(self, where: Server, owners: list[str], per_second: int, seconds: float) -> dict[str, float]:
        """Events at a steady rate, each of the next owner; what the server took, and what each receipt took."""
        per_event = 1 if len(owners) > 1 else self.listeners
        self.seen.clear()
        begun, cpu, numbers = time.perf_counter(), where.cpu(), []
        for n in range(int(per_second * seconds)):
            await asyncio.sleep(max(0.0, begun + n / per_second - time.perf_counter()))
            numbers.append(await self.send(where.name, owners[n % len(owners)]))
        async with asyncio.timeout(30):
            while sum(map(len, self.seen.values())) < per_event * len(numbers):  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.01)
        took = sorted((at - self.sent[n]) * 1000 for n in numbers for at in self.seen[n])
        last = statistics.median((max(self.seen[n]) - self.sent[n]) * 1000 for n in numbers)
        cuts = statistics.quantiles(took, n=100)
        return {
            "p50_ms": cuts[49], "p99_ms": cuts[98], "last_p50_ms": last,
            "cpu_ms_per_event": (where.cpu() - cpu) / len(numbers) * 1000,
        }  # fmt: skip

    listeners = 0


async def measure(told: argparse.Namespace, folder: Path, url: str) -> dict[str, Any]:
    """All cells: first everybody hears everything, then each his own."""
    servers = [Server(name, folder, url, told.sockets) for name in ("village", "bare")]
    sender = Sender(url)
    sender.listeners = told.sockets
    found: dict[str, Any] = {s.name: {"kb_per_socket": 0.0, "to_all": [], "to_one": []} for s in servers}
    try:
        for cell, per_second in (("to_all", BROADCASTS_PER_SECOND), ("to_one", SINGLES_PER_SECOND)):
            clients: list[Client] = []
            for where in servers:
                before, begun = where.memory(), time.perf_counter()
                clients += await where.open(cell == "to_one", told.sockets, sender.seen)
                if cell == "to_all":
                    found[where.name]["kb_per_socket"] = (where.memory() - before) / told.sockets / 1024
                    found[where.name]["opened_per_second"] = told.sockets / (time.perf_counter() - begun)
            owners = [f"client_{n}" for n in range(told.sockets)] if cell == "to_one" else ["all"]
            for _ in range(told.rounds):
                for where in servers:
                    found[where.name][cell].append(await sender.pace(where, owners, per_second, told.seconds))
            for client in clients:
                client.transport.close()
    finally:
        for where in servers:
            where.child.kill()
            where.child.wait()
        await sender.store.close()
        await sender.redis.aclose()
    return found


def report(found: dict[str, Any]) -> None:
    """A table: medians over the rounds, and their spread."""
    for cell, about in (("to_all", "one event to all"), ("to_one", f"{SINGLES_PER_SECOND} events/s, each to one")):
        print(f"\n{about:34} p50 ms (min - max)    p99 ms (min - max)   last p50 ms   CPU ms per event")
        for name, told in found.items():
            cells = [
                f"{statistics.median(v):8.2f} ({min(v):.2f} - {max(v):.2f})"
                for v in ([one[key] for one in told[cell]] for key in ("p50_ms", "p99_ms"))
            ]
            last, cpu = (
                statistics.median(one[key] for one in told[cell]) for key in ("last_p50_ms", "cpu_ms_per_event")
            )
            print(f"{name:30} {cells[0]:>22} {cells[1]:>22} {last:10.2f} {cpu:12.2f}")
    for name, told in found.items():
        print(f"{name}: {told['kb_per_socket']:.1f} KiB a socket, {told['opened_per_second']:.0f} opened a second")


async def village(path: str, url: str, owners: int) -> None:
    """The gateway, as a replica serves it, with an admin and a key for each owner."""
    from argon2 import PasswordHasher

    from cluster.identity.model import SYSTEM
    from cluster.identity.passwords import Passwords
    from cluster.identity.service import Identity
    from cluster.limits import policy
    from cluster.limits.limiter import Limiter
    from cluster.settings import Settings
    from serve_apps.core import Core
    from serve_apps.gateway import build_gateway
    from serve_apps.kit.hub import Hub
    from serve_apps.kit.readiness import Readiness
    from serve_apps.listener import Server as Uvicorn
    from serve_apps.listener import allow_open_files, configured

    allow_open_files()
    many = 1_000_000
    roomy = policy.Policy(
        tiers={tier: {"minute": many, "hour": many} for tier in ("standard", "premium", "enterprise")},
        sockets=policy.Sockets(per_caller=many, per_process=many),
    )
    store = Store(url)
    core = Core(
        settings=Settings(home=Path(path).parent, redis_url=url), store=store, limiter=Limiter(url, roomy),
        identity=Identity(store, passwords=Passwords(PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))),
        hub=Hub(store), readiness=Readiness({}),
    )  # fmt: skip
    await core.start()
    keys = [(await core.identity.create_key(SYSTEM, "bench", "all", ["admin"], many, many))[1]]
    for n in range(owners):
        keys.append((await core.identity.create_key(SYSTEM, str(n), "one", ["read"], many, many))[1])
    app = build_gateway(core)
    await Uvicorn(configured(app, uds=path), lambda: print(json.dumps(keys), flush=True)).serve()


async def bare(path: str, url: str, owners: int) -> None:
    """The peer."""
    from websockets.asyncio.server import ServerConnection, broadcast, unix_serve

    told: dict[str, set[ServerConnection]] = {}

    async def handle(socket: ServerConnection) -> None:
        owner = json.loads(await socket.recv())["owner"]
        told.setdefault(owner, set()).add(socket)
        await socket.send('{"type":"subscribed"}')
        await socket.wait_closed()
        told[owner].discard(socket)

    pubsub = redis_asyncio.Redis.from_url(url).pubsub()
    await pubsub.subscribe(CHANNEL)
    async with unix_serve(handle, path, compression=None, ping_interval=25):
        print(json.dumps(["none"] * (owners + 1)), flush=True)
        async for message in pubsub.listen():
            if message["type"] == "message":
                text = message["data"].decode()
                broadcast(told.get(json.loads(text)["owner"], ()), text)


def main() -> None:
    """Measure, print, write."""
    if sys.argv[1:2] == ["serve"]:
        _, _, name, path, url, owners = sys.argv
        uvloop.run((village if name == "village" else bare)(path, url, int(owners)))
        return
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--sockets", type=int, default=1000)
    ask.add_argument("--seconds", type=float, default=4)
    ask.add_argument("--rounds", type=int, default=3)
    told = ask.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        redis = server.start(folder, folder / "redis.sock")
        try:
            while not (folder / "redis.sock").exists():
                time.sleep(0.05)
            found = uvloop.run(measure(told, folder, f"unix://{folder}/redis.sock"))
        finally:
            redis.kill()
    report(found)
    RESULTS.write_text(json.dumps(vars(told) | found, indent=1))


if __name__ == "__main__":
    main()
