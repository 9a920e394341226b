"""Tasks through the public API to an HTTP agent: how many a second the village keeps up with.

    python -m benchmarks.task_door [--rates 250 500 750] [--seconds 15]     with a village up

A client submits one task at a time at a steady rate (open loop) over keep-alive connections; an endpoint in a process
of its own answers every delivery at once. Kept up: the last result is there within a second of the last submission.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from benchmarks.gateway import api_key
from benchmarks.tasks import spread
from cluster.cli.agent import DemoAgent
from cluster.cli.client import Client
from cluster.ids import new_id
from cluster.settings import Settings
from cluster.store import Store
from cluster.tasks.model import Task

RESULTS = Path(__file__).parent / "results" / "task_door.json"
ROOM = 200


def processors(settings: Settings) -> dict[int, tuple[str, float]]:
    """Processor seconds so far of the village's processes, by pid."""
    found = {}
    for process in psutil.process_iter(["pid", "cmdline", "cpu_times"]):
        title = " ".join(process.info["cmdline"] or [])
        if any(sign in title for sign in ("ray::", "redis-server", "haproxy", "raylet")):
            times = process.info["cpu_times"]
            found[process.info["pid"]] = (
                Path(title.split()[0]).name if "ray::" not in title else title[:60],
                times.user + times.system,
            )
    return found


async def steady(settings: Settings, key: str, tag: str, rate: float, seconds: float) -> dict[str, Any]:
    """One rate: what was submitted and finished in which time, and which processes that cost."""
    store, client = Store(settings.redis), f"bench_{new_id('x')}"
    body = {"client_id": "bench", "task_type": "noop", "capability_required": tag, "input_data": {"n": 1},
            "max_retries": 0, "metadata": {"run": client}}  # fmt: skip
    count, ids, submit_times = int(rate * seconds), [], []
    session = aiohttp.ClientSession(headers={"X-API-Key": key}, connector=aiohttp.TCPConnector(limit=64))
    before = processors(settings)

    async def one(at: float) -> None:
        async with session.post(f"{settings.url}/ains/tasks", json=body) as answer:
            ids.append((await answer.json())["task_id"])
            submit_times.append((time.perf_counter() - at) * 1000)

    begun, sent = time.perf_counter(), set()
    for n in range(count):
        at = begun + n / rate
        if (wait := at - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        job = asyncio.create_task(one(at))
        sent.add(job)
        job.add_done_callback(sent.discard)
    while sent:
        await asyncio.wait(set(sent))
    submitted = time.perf_counter() - begun
    while True:
        tasks = [task for start in range(0, count, 500) for task in await store.many(Task, ids[start : start + 500])]
        if all(task.completed_at for task in tasks):
            break
        await asyncio.sleep(0.1)
    finished = time.perf_counter() - begun
    after = processors(settings)
    await session.close()
    await store.close()
    whole = [(task.completed_at - task.created_at).total_seconds() * 1000 for task in tasks if task.completed_at]
    spent = sorted(((after[pid][1] - was) / count * 1e6, title) for pid, (title, was) in before.items() if pid in after)
    return {
        "rate": rate, "completed_per_s": count / finished, "behind_s": finished - submitted,
        "failed": sum(task.state != "COMPLETED" for task in tasks), "submit": spread(submit_times),
        "created_to_completed": spread(whole),
        "microseconds_per_task": {title: round(each) for each, title in reversed(spent) if each > 5},
    }  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    ask = argparse.ArgumentParser(prog="python -m benchmarks.task_door")
    ask.add_argument("--rates", type=float, nargs="+", default=[250, 500, 750, 1000])
    ask.add_argument("--seconds", type=float, default=15)
    told = ask.parse_args()
    settings = Settings()
    endpoint = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.task_parts", "agents", settings.redis], stdout=subprocess.PIPE, text=True
    )
    assert endpoint.stdout is not None
    try:
        agent = DemoAgent()
        agent.server.server_close()
        agent.endpoint = f"http://127.0.0.1:{int(endpoint.stdout.readline())}/one"
        body = agent.registration()
        Client(settings).post("/ains/agents", body | {"metadata": {"max_concurrent_tasks": ROOM}})
        found = []
        for rate in told.rates:
            run = asyncio.run(steady(settings, api_key(settings), agent.only_tag, rate, told.seconds))
            found.append(run)
            print(json.dumps(run), flush=True)
        kept = [run["completed_per_s"] for run in found if run["behind_s"] < 1]
        print(f"kept up with {max(kept, default=0):.0f} tasks/s; median {statistics.median(kept or [0]):.0f}")
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    finally:
        endpoint.kill()


if __name__ == "__main__":
    main()
