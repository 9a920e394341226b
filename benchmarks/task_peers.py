"""A task queue of others, for `benchmarks.tasks`: Celery, Dramatiq or arq on the Redis that it is told.

    python task_peers.py PEER REDIS_URL throughput COUNT | latency COUNT | paced RATE SECONDS

Runs in an environment of its own (`.venv-peers`): Celery's Redis client is two major versions behind ours. Two worker
processes each, as their documentation starts them: Celery prefork with a result backend, Dramatiq with its threads and
results, arq with its asyncio loop and results. Prints JSON.
"""

# pyright: basic, reportArgumentType=false, reportMissingImports=false, reportCallIssue=false
import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

URL = os.environ.get("PEER_REDIS", "redis://127.0.0.1:1/0")
HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
PROCESSES = 2


def celery_app() -> Any:
    from celery import Celery  # type: ignore[import-not-found]

    app = Celery("peers", broker=URL, backend=URL)
    app.conf.update(worker_hijack_root_logger=False, broker_connection_retry_on_startup=True)

    @app.task(name="noop")
    def noop(n: int) -> int:
        return n

    return app


def dramatiq_actor() -> Any:
    import dramatiq  # type: ignore[import-not-found]
    from dramatiq.brokers.redis import RedisBroker  # type: ignore[import-not-found]
    from dramatiq.results import Results  # type: ignore[import-not-found]
    from dramatiq.results.backends import RedisBackend  # type: ignore[import-not-found]

    broker = RedisBroker(url=URL)
    if os.environ.get("PEER_RESULTS"):
        broker.add_middleware(Results(backend=RedisBackend(url=URL)))
    dramatiq.set_broker(broker)
    import redis

    counter = redis.Redis.from_url(URL)
    if os.environ.get("PEER_RESULTS"):
        return dramatiq.actor(lambda n: n, actor_name="noop", store_results=True)

    def noop(n: int) -> None:
        counter.incr("done")

    return dramatiq.actor(noop, actor_name="noop")


async def noop(_: Any, n: int) -> int:
    return n


class WorkerSettings:
    """arq's."""

    functions = [noop]
    max_jobs = 100
    poll_delay = 0.01


if os.environ.get("PEER") == "celery":
    app = celery_app()
elif os.environ.get("PEER") == "dramatiq":
    actor = dramatiq_actor()
elif os.environ.get("PEER") == "arq":
    from arq.connections import RedisSettings  # type: ignore[import-not-found]

    WorkerSettings.redis_settings = RedisSettings.from_dsn(URL)  # type: ignore[attr-defined]

WORKERS = {
    "celery": [["celery", "-A", "task_peers", "worker", "-c", str(PROCESSES), "-P", "prefork", "-l", "ERROR"]],
    "dramatiq": [["dramatiq", "task_peers", "-p", str(PROCESSES), "--skip-logging"]],
    "arq": [["arq", "task_peers.WorkerSettings"]] * PROCESSES,
}


class Celery:
    def __init__(self) -> None:
        self.app = app
        self.task = app.tasks["noop"]

    def submit(self, count: int) -> None:
        for n in range(count):
            self.task.apply_async((n,))

    def done(self, redis: Any) -> int:
        return redis.dbsize()  # a key for each result, and a handful of others

    def once(self) -> None:
        self.task.apply_async((1,)).get(timeout=30)


class Dramatiq:
    def submit(self, count: int) -> None:
        for n in range(count):
            actor.send(n)

    def done(self, redis: Any) -> int:
        return int(redis.get("done") or 0)

    def once(self) -> None:
        actor.send(1).get_result(block=True, timeout=30_000)


class Arq:
    def __init__(self) -> None:
        from arq import create_pool  # type: ignore[import-not-found]

        self.loop = asyncio.new_event_loop()
        self.pool = self.loop.run_until_complete(create_pool(WorkerSettings.redis_settings))  # type: ignore[attr-defined]

    def submit(self, count: int) -> None:
        async def some() -> None:
            for start in range(0, count, 50):
                await asyncio.gather(*(self.pool.enqueue_job("noop", n) for n in range(start, min(start + 50, count))))

        self.loop.run_until_complete(some())

    def done(self, redis: Any) -> int:
        return sum(1 for _ in redis.scan_iter("arq:result:*", count=10_000))

    def once(self) -> None:
        from arq.jobs import ResultNotFound  # type: ignore[import-not-found]

        async def one() -> int:
            job = await self.pool.enqueue_job("noop", 1)
            while True:
                try:
                    return await job.result(timeout=30, poll_delay=0.001)
                except ResultNotFound:  # it asks for the result and for the job one after the other, and may miss both
                    await asyncio.sleep(0)

        self.loop.run_until_complete(one())


def measure(peer: Any, redis: Any, what: str, numbers: list[float]) -> dict[str, float]:
    for _ in range(20):
        peer.once() if what != "throughput" or not isinstance(peer, Dramatiq) else peer.submit(1)
    pause = threading.Event()
    pause.wait(1)
    if what == "throughput":
        count = int(numbers[0])
        before, begun = peer.done(redis), time.perf_counter()
        peer.submit(count)
        submitted = time.perf_counter() - begun
        while peer.done(redis) < before + count:
            pause.wait(0.02)
        return {"submitted_per_s": count / submitted, "tasks_per_s": count / (time.perf_counter() - begun)}
    times, gap, next_at = [], 0.0, time.perf_counter()
    count = int(numbers[0]) if what == "latency" else int(numbers[0] * numbers[1])
    if what == "paced":
        gap = 1 / numbers[0]
    for _ in range(count):
        if gap:
            pause.wait(max(0.0, next_at - time.perf_counter()))
            next_at += gap
        begun = time.perf_counter()
        peer.once()
        times.append((time.perf_counter() - begun) * 1000)
    times.sort()
    return {"p50_ms": statistics.median(times), "p99_ms": times[int(len(times) * 0.99)]}


def main() -> None:
    name, url, what, *numbers = sys.argv[1:]
    environment = os.environ | {"PEER": name, "PEER_REDIS": url, "PYTHONPATH": str(HERE)}
    if what != "throughput":
        environment["PEER_RESULTS"] = "1"
    if os.environ.get("PEER") != name:  # again, with what the module needs to build its app
        os.execve(sys.executable, [sys.executable, __file__, *sys.argv[1:]], environment)
    import redis

    client = redis.Redis.from_url(url)
    client.flushall()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    workers = [
        subprocess.Popen(
            [str(BIN / command[0]), *command[1:]], env=environment, cwd=HERE, start_new_session=True, **quiet
        )
        for command in WORKERS[name]
    ]
    try:
        threading.Event().wait(4)
        peer = {"celery": Celery, "dramatiq": Dramatiq, "arq": Arq}[name]()
        print(json.dumps(measure(peer, client, what, [float(n) for n in numbers])))
    finally:
        for worker in workers:
            os.killpg(worker.pid, 9)


if __name__ == "__main__":
    main()
