"""Gateway overhead: our GET /healthz and POST /ains/tasks beside a FastAPI no-op on bare Ray Serve.

    python -m benchmarks.gateway [--seconds 5] [--rounds 3]     with a village up

Each peer runs alone beside the idle village; all cells of one door alternate within the round.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import threading
from dataclasses import asdict
from functools import partial
from pathlib import Path

import httpx
import psutil

from benchmarks import load
from cluster.cli.client import Client
from cluster.settings import Settings
from cluster.store import Store
from cluster.tasks.model import Task, line

RESULTS = Path(__file__).parent / "results" / "gateway.json"
PEER_PORT = 18080
CONCURRENCY = (1, 16, 64)
TASK = {
    "client_id": "bench", "task_type": "none", "capability_required": "nobody:v1", "priority": 5,
    "input_data": {"dataset": "data_001.csv"}, "timeout_seconds": 300, "max_retries": 3, "metadata": {"user": "u"},
}  # fmt: skip


def api_key(settings: Settings) -> str:
    """A key whose limits the run does not meet."""
    body = {
        "client_id": "bench", "name": "benchmark", "scopes": ["tasks:read", "tasks:write"],
        "rate_limit_per_minute": 1_000_000, "rate_limit_per_hour": 60_000_000,
    }  # fmt: skip
    return Client(settings).post("/ains/api-keys", body)["api_key"]


def peer(door: str) -> subprocess.Popen[str]:
    """The no-op behind a door, ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.bare_serve", door, str(PEER_PORT)], stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    while line := process.stdout.readline():
        if line.strip() == "ready":
            break
    pause, good = threading.Event(), 0
    for _ in range(300):  # HAProxy listens a little after Serve says that it runs, and believes in empty slots at first
        try:
            good = good + 1 if httpx.get(f"http://127.0.0.1:{PEER_PORT}/noop", timeout=1).status_code == 200 else 0
            if good == 20:
                return process
        except httpx.HTTPError:
            pass
        pause.wait(0.1)
    end(process)
    raise SystemExit(f"the peer behind {door} did not start")


def end(process: subprocess.Popen[str]) -> None:
    """The peer, with its Ray."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    psutil.wait_procs(family, timeout=10)
    for member in family:
        if member.is_running():
            member.kill()
    process.wait()


def main() -> None:
    """Measure, print, write."""
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--seconds", type=float, default=5)
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--doors", nargs="+", default=["classic", "haproxy", "socket"])
    told = ask.parse_args()
    settings = Settings()
    body = json.dumps(TASK).encode()
    key = {"X-API-Key": api_key(settings)}
    ours = {
        "village GET /healthz": load.request_bytes("GET", "/healthz", {}),
        "village POST /ains/tasks": load.request_bytes("POST", "/ains/tasks", key, body),
    }
    bare = {
        "no-op GET": load.request_bytes("GET", "/noop", {}),
        "no-op POST": load.request_bytes("POST", "/noop", {}, body),
    }
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    for door in told.doors:
        process = peer(door)
        try:
            for concurrency in CONCURRENCY:
                cells = {}
                for name, request in bare.items():
                    cells[f"{name} ({door})"] = (PEER_PORT, request)
                for name, request in ours.items():
                    cells[name] = (settings.port, request)
                runs = load.rounds(
                    told.rounds,
                    {
                        name: partial(load.run, "127.0.0.1", port, request, concurrency, told.seconds)
                        for name, (port, request) in cells.items()
                    },
                )
                for name, found in runs.items():
                    rows.setdefault(name, {}).setdefault(str(concurrency), []).extend(asdict(one) for one in found)
        finally:
            end(process)
    report(rows)
    RESULTS.write_text(json.dumps(rows, indent=1))
    asyncio.run(forget(settings))


def report(rows: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    """A table: medians, with the spread of the rates."""
    for concurrency in map(str, CONCURRENCY):
        print(f"\nconcurrency {concurrency:>3}            requests/s min / median / max      p50 ms   p99 ms  errors")
        for name, cells in rows.items():
            found = cells[concurrency]
            rates = [one["requests_per_second"] for one in found]
            p50, p99 = (statistics.median(one[key] for one in found) for key in ("p50_ms", "p99_ms"))
            errors = sum(one["errors"] for one in found)
            print(f"{name:34} {load.middle(rates):>28} {p50:12.2f} {p99:8.2f} {errors:7.0f}")


async def forget(settings: Settings) -> None:
    """Take what the run queued out again."""
    store = Store(settings.redis)
    for task_id in await store.ids(Task, "ready", *line("nobody:v1", "bench")):
        await store.delete(Task, task_id)
    await store.close()


if __name__ == "__main__":
    main()
