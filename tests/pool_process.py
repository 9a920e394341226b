"""A worker of the village in a process of its own, for tests that kill it. `python pool_process.py URL NAME`"""

import asyncio
import os
import signal
import sys
import time
from typing import Any

from cluster.store import Store
from cluster.workers.pool import PoolWorker
from cluster.workers.work import Job


def add(data: dict[str, Any], job: Job) -> dict[str, Any]:
    """What it is sent, and who did it."""
    return {"sum": data.get("a", 0) + 1, "pid": os.getpid()}


def die(data: dict[str, Any], job: Job) -> None:
    """Takes its process along."""
    os.kill(os.getpid(), signal.SIGKILL)


def spin(data: dict[str, Any], job: Job) -> str:
    """Goes on until it is over, or for ever where it is told not to look."""
    while data.get("deaf") or not job.over:
        time.sleep(0.01)  # noqa: TID251 - a callable's own work
        if data.get("steps"):
            job.progress(50.0, "half")
    return "stopped"


CALLABLES = {"sums:v1": add, "death:v1": die, "spin:v1": spin}

if __name__ == "__main__":
    asyncio.run(PoolWorker(Store(sys.argv[1]), "pool", sys.argv[2], CALLABLES).run())
