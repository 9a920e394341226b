"""Tasks: the engine against Celery, Dramatiq and arq, on one Redis, in one run.

    python -m benchmarks.tasks [--only pool latency queue agents http] [--rounds 3] [--count 10000] [--profile FOLDER]

Parts: `pool` no-op tasks through two workers of the village, submitted a hundred at a time by a program in the cluster
(as the peers' programs submit to their broker), until the last one has its result; `latency` one task at a time from
its submission until its result is known, then paced at half of the throughput; `queue` how an empty and a full queue
differ; `agents` what a task costs among 10, 100 and 1,000 HTTP agents. `http` needs a village that is up: tasks through
its public API to an HTTP agent.

Ours runs as in a village, without Ray around it: router, ledger, the stream keeper with audit log, webhooks and
workflows, two workers; Redis with everysec, every change an event, every outcome a line of the trust ledger.
The peers are installed into `.venv-peers` (Celery needs an older Redis client than ours).
"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from cluster.clock import utc_now
from cluster.errors import Unavailable
from cluster.identity.model import Principal
from cluster.settings import Settings
from cluster.store import Store, Write, server
from cluster.tasks.events import changed
from cluster.tasks.model import Task
from cluster.tasks.service import Tasks, TaskSpec
from cluster.workers.keeper import PoolKeeper
from cluster.workers.model import Agent
from cluster.workers.work import configured

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "tasks.json"
PEERS = ROOT / ".venv-peers"
PACKAGES = ("celery[redis]==5.7.0", "dramatiq[redis]==2.2.1", "arq==0.28.0", "hiredis")
WHO = Principal(principal_id="key_bench", owner="client_bench", username="", client_id="bench")
ASKED: dict[str, Any] = {
    "client_id": "bench", "task_type": "noop", "capability_required": "echo:v1", "input_data": {"n": 1},
    "max_retries": 0,
}  # fmt: skip
NOOP = TaskSpec(**ASKED)
ENDED = frozenset({"task.completed"})
QUEUED = 200_000


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """A server of its own, on a port of loopback, for everybody alike."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = server.command(Path(folder) / "redis", Path(folder) / "s")
        (Path(folder) / "redis").mkdir()
        process = subprocess.Popen([*command, "--port", str(port), "--bind", "127.0.0.1"], stdout=subprocess.DEVNULL)
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()
            process.wait()


class Parts:
    """The engine's processes."""

    def __init__(self, url: str, profile: str) -> None:
        self.url, self.profile = url, profile
        self.running: dict[str, subprocess.Popen[str]] = {}

    def start(self, *names: str) -> None:
        """Run them."""
        for name in names:
            told = [str(Path(self.profile) / f"{name}.txt")] if self.profile else []
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.task_parts", name, self.url, *told], cwd=ROOT,
                stdout=subprocess.PIPE, text=True, env=os.environ | {"VILLAGE_HOME": tempfile.mkdtemp()},
            )  # fmt: skip

    def seconds(self) -> dict[str, float]:
        """Processor time of each so far."""
        times = {name: psutil.Process(child.pid).cpu_times() for name, child in self.running.items()}
        return {name: round(t.user + t.system, 2) for name, t in times.items()}

    def stop(self) -> None:
        """End them."""
        for child in self.running.values():
            child.send_signal(signal.SIGTERM if self.profile else signal.SIGKILL)
            child.wait()
        self.running.clear()


class NoHands:
    """The benchmark starts the workers itself."""

    async def names(self) -> list[str]:
        """None of them is the keeper's."""
        return []

    async def start(self, name: str) -> None:
        """Not asked for."""

    async def retire(self, name: str) -> None:
        """Not asked for."""

    async def most(self) -> int:
        """Two, as the peers have."""
        return 2


@contextlib.asynccontextmanager
async def engine(url: str, profile: str = "", *, workers: int = 2, others: Sequence[str] = ()) -> AsyncIterator[Any]:
    """The engine on an empty store: the store, and its parts."""
    store = Store(url)
    while True:
        try:
            await store._redis.flushall()
            break
        except (OSError, Unavailable, ConnectionError):
            await asyncio.sleep(0.1)
    if workers:
        await PoolKeeper(store, configured(Settings().workers_config), NoHands()).register(workers)
    parts = Parts(url, profile)
    parts.start("router", "ledger", "stream", *(f"worker-{n}" for n in range(workers)), *others)
    try:
        yield store, parts
    finally:
        parts.stop()
        await store.close()


async def until(what: Callable[[], Any], seconds: float = 120) -> None:
    """Poll, rarely enough to cost nothing."""
    end = time.perf_counter() + seconds
    while not await what():
        if time.perf_counter() > end:
            raise TimeoutError("it did not get there")
        await asyncio.sleep(0.02)


async def warm(store: Store, tasks: Tasks) -> None:
    """Until a task comes through."""
    await tasks.submit(WHO, [NOOP])
    await until(lambda: store.ids(Task, "list", "owner", WHO.owner, "COMPLETED"), 60)
    for _ in range(5):
        await tasks.submit(WHO, [NOOP] * 50)
    await until(lambda: count_is(store, "COMPLETED", 251), 60)


async def count_is(store: Store, state: str, wanted: int) -> bool:
    """Whether so many tasks are in that state."""
    return await store.count(Task, "list", "owner", WHO.owner, state) >= wanted


async def throughput(url: str, count: int, profile: str = "") -> dict[str, Any]:
    """Ours: tasks a second until the last result, and the processor time of each part per task."""
    async with engine(url, profile) as (store, parts):
        tasks = Tasks(store)
        await warm(store, tasks)
        await asyncio.sleep(1)
        before, own, begun = await spent(store, parts), resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        for _ in range(count // 100):
            await tasks.submit(WHO, [NOOP] * 100)
        submitted = time.perf_counter() - begun
        await until(lambda: count_is(store, "COMPLETED", 251 + count))
        seconds = time.perf_counter() - begun
        after, mine = await spent(store, parts), resource.getrusage(resource.RUSAGE_SELF)
        submitting = mine.ru_utime + mine.ru_stime - own.ru_utime - own.ru_stime
        return {
            "submitted_per_s": count / submitted, "tasks_per_s": count / seconds,
            "microseconds_per_task": {name: round((after[name] - before[name]) / count * 1e6) for name in after}
            | {"submitting": round(submitting / count * 1e6)},
        }  # fmt: skip


async def spent(store: Store, parts: Parts) -> dict[str, float]:
    """Processor seconds so far of every part, and of Redis."""
    cpu = await store._redis.info("cpu")
    return parts.seconds() | {"redis": float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])}


async def one(store: Store, tasks: Tasks, after: str) -> str:
    """Submit a task and wait for its result as a program does that follows the events. Where to read on."""
    [task] = await tasks.submit(WHO, [NOOP])
    while True:
        found, after = await store.batch(after, ENDED, wait_seconds=4)
        if any(event.subject == task.task_id for event in found):
            return after


async def latency(url: str, count: int, rate: float) -> dict[str, Any]:
    """Ours, one at a time; then paced, whatever the ones before do."""
    async with engine(url) as (store, _):
        tasks = Tasks(store)
        await warm(store, tasks)
        after, times = await store.last_event_id(), []
        for _ in range(count):
            begun = time.perf_counter()
            after = await one(store, tasks, after)
            times.append((time.perf_counter() - begun) * 1000)
        return {"single": spread(times), "half_load": await paced(store, tasks, rate, 8)}


async def paced(store: Store, tasks: Tasks, rate: float, seconds: float) -> dict[str, Any]:
    """`rate` tasks a second, a hundredth of them every 10 ms, from when each was due to when its result was seen."""
    due: dict[str, float] = {}
    times: list[float] = []
    some = max(1, int(rate / 100))
    count, after = some * int(seconds * 100), await store.last_event_id()

    async def submit(at: float, some: int) -> None:
        due.update(dict.fromkeys([task.task_id for task in await tasks.submit(WHO, [NOOP] * some)], at))

    async def watch() -> None:
        nonlocal after
        seen: dict[str, float] = {}
        while len(times) < count:
            found, after = await store.batch(after, ENDED, wait_seconds=4)
            now = time.perf_counter()
            seen |= {event.subject: now for event in found}
            for task_id in [name for name in seen if name in due]:
                times.append((seen.pop(task_id) - due.pop(task_id)) * 1000)

    watching = asyncio.create_task(watch())
    begun, sent = time.perf_counter(), set()
    for n in range(count // some):
        at = begun + n / 100
        if (wait := at - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        job = asyncio.create_task(submit(at, some))
        sent.add(job)
        job.add_done_callback(sent.discard)
    await asyncio.wait_for(watching, 60)
    return {"rate": some * 100} | spread(times)


def spread(times: Sequence[float]) -> dict[str, float]:
    """p50 and p99, in milliseconds."""
    ordered = sorted(times)
    return {"p50_ms": statistics.median(ordered), "p99_ms": ordered[int(len(ordered) * 0.99)]}


def peer(name: str, url: str, *told: object) -> dict[str, float]:
    """One of the others."""
    if not PEERS.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEERS)], check=True)
        subprocess.run([str(PEERS / "bin/pip"), "install", "-q", *PACKAGES], check=True)
    command = [str(PEERS / "bin/python"), str(ROOT / "benchmarks/task_peers.py"), name, url, *map(str, told)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-400:]}")
    return json.loads(done.stdout)


def pool(url: str, rounds: int, count: int, profile: str) -> dict[str, Any]:
    """Rounds of everybody in turn."""
    found: dict[str, list[Any]] = {"ours": [], "celery": [], "dramatiq": [], "arq": []}
    for n in range(rounds):
        found["ours"].append(asyncio.run(throughput(url, count, profile)))
        for name in ("celery", "dramatiq", "arq"):
            found[name].append(peer(name, url, "throughput", count if name == "dramatiq" else count // 3))
        print(f"round {n + 1}:", {name: round(runs[-1]["tasks_per_s"]) for name, runs in found.items()}, flush=True)
    for name in ("celery", "dramatiq", "arq"):
        ratios = [o["tasks_per_s"] / p["tasks_per_s"] for o, p in zip(found["ours"], found[name], strict=True)]
        found[f"ours_to_{name}"] = [min(ratios), statistics.median(ratios), max(ratios)]
    return found


def latencies(url: str, rounds: int, rate: float) -> dict[str, Any]:
    """The same for one task at a time; half load is half of what ours does."""
    found: dict[str, list[Any]] = {"ours": [], "celery": [], "dramatiq": [], "arq": []}
    for n in range(rounds):
        found["ours"].append(asyncio.run(latency(url, 300, rate)))
        for name in ("celery", "dramatiq", "arq"):
            found[name].append(peer(name, url, "latency", 300))
        said = {name: runs[-1].get("single", runs[-1]) for name, runs in found.items()}
        print(f"round {n + 1}:", {name: round(each["p50_ms"], 2) for name, each in said.items()}, found["ours"][-1])
    return dict(found)


async def fill(store: Store, count: int, capability: str) -> None:
    """Ready tasks that nobody can do, written as `submit` writes them."""
    at = utc_now()
    for start in range(0, count, 200):
        tasks = [
            Task(
                **NOOP.model_dump(exclude={"capability_required"}), capability_required=capability, owner=WHO.owner,
                share="bench", task_id=f"task_{start + n:024x}", created_at=at, updated_at=at,
            )
            for n in range(200)
        ]  # fmt: skip
        await store.commit_each([Write(None, task, event=changed(None, task)) for task in tasks])


async def queue(url: str) -> dict[str, Any]:
    """Submit rate and round trip beside an empty queue and beside a full one, and what a queued task weighs."""
    found: dict[str, Any] = {}
    async with engine(url) as (store, parts):
        tasks = Tasks(store)
        await warm(store, tasks)
        found["empty"] = await probe(store, tasks, 251)
        before = int((await store._redis.info("memory"))["used_memory"])
        rss = psutil.Process(parts.running["router"].pid).memory_info().rss
        begun = time.perf_counter()
        await fill(store, QUEUED, "nobody:v1")
        found["fill_per_s"] = QUEUED / (time.perf_counter() - begun)
        await asyncio.sleep(5)
        found["redis_bytes_per_task"] = (int((await store._redis.info("memory"))["used_memory"]) - before) / QUEUED
        found["router_bytes_per_task"] = (psutil.Process(parts.running["router"].pid).memory_info().rss - rss) / QUEUED
        found["full"] = await probe(store, tasks, 251 + found["empty"]["tasks"])
        router = parts.running.pop("router")
        router.kill()
        router.wait()
        begun = time.perf_counter()
        parts.start("router")
        await one(store, tasks, await store.last_event_id())
        found["restart_to_first_result_s"] = time.perf_counter() - begun
    return found


async def probe(store: Store, tasks: Tasks, done: int) -> dict[str, Any]:
    """Submit 5,000 in batches, and after that 200 one by one."""
    begun = time.perf_counter()
    for _ in range(50):
        await tasks.submit(WHO, [NOOP] * 100)
    submitted = time.perf_counter() - begun
    await until(lambda: count_is(store, "COMPLETED", done + 5000))
    after, times = await store.last_event_id(), []
    for _ in range(200):
        at = time.perf_counter()
        after = await one(store, tasks, after)
        times.append((time.perf_counter() - at) * 1000)
    return {"submitted_per_s": 5000 / submitted, "tasks": 5200} | spread(times)


async def agents(url: str, many: int, count: int = 3000) -> dict[str, Any]:
    """Tasks a second through so many push agents behind one endpoint, and the router's processor time per task."""
    async with engine(url, workers=0, others=("agents",)) as (store, parts):
        out = parts.running["agents"].stdout
        assert out is not None
        port, at = int(await asyncio.to_thread(out.readline)), utc_now()
        for n in range(many):
            says: dict[str, Any] = {
                "agent_id": f"agent_{n}", "endpoint": f"http://127.0.0.1:{port}/{n}", "tags": ("echo:v1",),
                "max_concurrent_tasks": max(1, 200 // many), "owner": WHO.owner, "display_name": "", "public_key": "",
                "created_at": at, "last_seen_at": at,
            }  # fmt: skip
            await store.create(Agent(**says))
        parts.running.pop("router").kill()
        parts.start("router")
        tasks = Tasks(store)
        await warm(store, tasks)
        before, begun = parts.seconds()["router"], time.perf_counter()
        for _ in range(count // 100):
            await tasks.submit(WHO, [NOOP] * 100)
        await until(lambda: count_is(store, "COMPLETED", 251 + count))
        seconds = time.perf_counter() - begun
        spent = parts.seconds()["router"] - before
        return {"agents": many, "tasks_per_s": count / seconds, "router_microseconds_per_task": spent / count * 1e6}


def main() -> None:
    """The command line."""
    ask = argparse.ArgumentParser(prog="python -m benchmarks.tasks")
    ask.add_argument("--only", nargs="*", default=["pool", "latency", "queue", "agents"])
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--count", type=int, default=10_000)
    ask.add_argument("--profile", default="")
    told = ask.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with redis() as url:
        time.perf_counter()
        if "pool" in told.only:
            found["pool"] = pool(url, told.rounds, told.count, told.profile)
            keep(found, told)
        if "latency" in told.only:
            rates = [run["tasks_per_s"] for run in found.get("pool", {}).get("ours", [])]
            found["latency"] = latencies(url, told.rounds, statistics.median(rates) / 2 if rates else 500.0)
            keep(found, told)
        if "queue" in told.only:
            found["queue"] = asyncio.run(queue(url))
            print(json.dumps(found["queue"], indent=1))
            keep(found, told)
        if "agents" in told.only:
            found["agents"] = [asyncio.run(agents(url, many)) for many in (10, 100, 1000)]
            print(json.dumps(found["agents"], indent=1))
    keep(found, told)


def keep(found: dict[str, Any], told: argparse.Namespace) -> None:
    """Write what there is: a later part may fail."""
    if not told.profile:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
