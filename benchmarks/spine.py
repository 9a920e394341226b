"""What the spine costs: one route, with each layer switched on in turn, in a process as a gateway replica runs it.

    python -m benchmarks.spine [--seconds 3] [--rounds 5]

The route reads nothing and answers `{"ok": true}`. `bare` is FastAPI alone, the peer; every further row adds a layer
to the row above. Times are at one connection (the layer's latency) and at 64 (its processor time). Round trips to Redis
are counted by Redis. Every layer's process is up for the whole run, and a round visits all of them in turn.
"""

import argparse
import asyncio
import dataclasses
import json
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp

from benchmarks import load
from cluster import heap
from cluster.identity.model import SYSTEM
from cluster.settings import Settings
from cluster.store import Store, server
from serve_apps.compose import build_core
from serve_apps.core import Absent, Core
from serve_apps.dialects.ains import AINS
from serve_apps.gateway import build_gateway
from serve_apps.kit import admission, dialect
from serve_apps.kit.call import Call
from serve_apps.kit.dialect import Dialect
from serve_apps.scopes import OPEN, SCOPES

RESULTS = Path(__file__).parent / "results" / "spine.json"
PATH = "/ains/bench"
LAYERS = ("bare", "gateway", "authentication", "scope", "limits", "everything")
router = APIRouter()


@router.get(PATH)
async def bench() -> dict[str, bool]:
    """The route."""
    return {"ok": True}


async def recognised(call: Call, scope: Any, _: Dialect) -> None:
    """Admission without limits."""
    await admission.recognise(call, admission.credential(scope))


async def not_admitted(call: Call, scope: Any, _: Dialect) -> None:
    """Admission of anybody."""


class Quiet:
    """Counts nothing: what `everything` adds is metrics, usage and audit."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: Quiet()


def app_of(layer: str, core: Core) -> ASGIApp:
    """The app up to and with this layer."""
    if layer == "bare":
        app = FastAPI(openapi_url=None)
        app.include_router(router)
        return app
    admits: dict[str, Any] = {"gateway": not_admitted, "authentication": recognised, "scope": recognised}
    dialect.admit = admits.get(layer, admission.admit)
    SCOPES["AINS"][f"GET {PATH}"] = OPEN if layer in ("gateway", "authentication") else "tasks:read"
    if layer != "everything":
        core.metrics = Quiet()  # type: ignore[assignment]  # as little as can be
        core.audit = Absent("audit")
        core.usage = Quiet()  # type: ignore[assignment]
    return build_gateway(core, [dataclasses.replace(AINS, routers=(*AINS.routers, router))])


async def serve(layer: str, url: str, home: str, port: int) -> None:
    """The child: one process, one layer."""
    core = await build_core(Settings(home=Path(home), redis_url=url), Absent("chat"), Absent("knowledge"))  # type: ignore[arg-type]
    door = socket.create_server(("127.0.0.1", port), backlog=1024)
    config = uvicorn.Config(app_of(layer, core), http="httptools", lifespan="off", access_log=False, log_config=None)
    await core.start()
    heap.settle()
    await uvicorn.Server(config).serve(sockets=[door])


def started(layer: str, url: str, home: str) -> tuple[subprocess.Popen[bytes], int]:
    """A child that answers."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.spine", "--serve", layer, url, home, str(port)])
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process, port
        except OSError:
            if process.poll() is not None:
                break
            asyncio.run(asyncio.sleep(0.1))
    raise SystemExit(f"{layer} did not start")


async def key_for(url: str) -> str:
    """A key whose limits the run does not meet."""
    from cluster.identity.service import Identity

    store = Store(url)
    await store.ping()
    _, key = await Identity(store).create_key(SYSTEM, "bench", "bench", ["tasks:read"], 10**6, 6 * 10**7)
    await store.close()
    return key


async def reads(url: str) -> int:
    """How often Redis has read from a client so far: a round trip each."""
    store = Store(url)
    told = await store._redis.info("stats")
    await store.close()
    return told["total_reads_processed"]


def measured(url: str, port: int, request: bytes, seconds: float, concurrency: int) -> dict[str, float]:
    """One cell, with the round trips that each request cost."""
    before = asyncio.run(reads(url))
    found = load.run("127.0.0.1", port, request, concurrency, seconds)
    asked = max(1.0, found.requests_per_second * seconds)
    trips = (asyncio.run(reads(url)) - before) / asked
    return {"p50_ms": found.p50_ms, "p99_ms": found.p99_ms, "per_second": found.requests_per_second,
            "errors": found.errors, "round_trips": trips}  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--seconds", type=float, default=3)
    ask.add_argument("--rounds", type=int, default=5)
    ask.add_argument("--serve", nargs=4)
    told = ask.parse_args()
    if told.serve:
        layer, url, home, port = told.serve
        uvloop.run(serve(layer, url, home, int(port)))
        return
    with tempfile.TemporaryDirectory(prefix="village-spine-") as home:
        redis = server.start(Path(home), Path(home) / "redis.sock")
        children: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
        try:
            url = f"unix://{home}/redis.sock"
            asyncio.run(answers(url))
            request = load.request_bytes("GET", PATH, {"X-API-Key": asyncio.run(key_for(url))})
            for layer in LAYERS:
                children[layer] = started(layer, url, home)
            rows = {
                concurrency: rounds(
                    told.rounds,
                    {
                        layer: partial(measured, url, port, request, told.seconds, concurrency)
                        for layer, (_, port) in children.items()
                    },
                )
                for concurrency in (1, 64)
            }
        finally:
            for process, _ in children.values():
                process.kill()
                process.wait()
            redis.kill()
            redis.wait()
    report(rows)
    RESULTS.write_text(json.dumps(rows, indent=1))


async def answers(url: str) -> None:
    """Return once Redis does."""
    store = Store(url)
    for _ in range(100):
        try:
            await store.ping()
            break
        except Exception:
            await asyncio.sleep(0.1)
    await store.close()


def rounds(count: int, cells: dict[str, Callable[[], dict[str, float]]]) -> dict[str, list[dict[str, float]]]:
    """Every cell once per round, in turn."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in cells}
    for _ in range(count):
        for name, cell in cells.items():
            found[name].append(cell())
    return found


def report(rows: dict[int, dict[str, list[dict[str, float]]]]) -> None:
    """A table: medians, and min to max of the p50."""
    for concurrency, layers in rows.items():
        print(f"\n{concurrency} connections     p50 ms (min to max)    over bare   p99 ms  requests/s  trips  errors")
        bare = statistics.median(one["p50_ms"] for one in layers["bare"])
        for layer, found in layers.items():
            p50s = [one["p50_ms"] for one in found]
            p50, p99, rate, trips = (
                statistics.median(one[key] for one in found)
                for key in ("p50_ms", "p99_ms", "per_second", "round_trips")
            )
            print(
                f"{layer:16} {p50:8.3f} ({min(p50s):.3f} to {max(p50s):.3f}) {p50 - bare:+10.3f} {p99:8.2f} "
                f"{rate:11.0f} {trips:6.2f} {sum(one['errors'] for one in found):7.0f}"
            )


if __name__ == "__main__":
    main()
