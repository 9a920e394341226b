"""What a village costs a laptop: seconds from `village up` to ready, memory with one chat model, idle processor time.

python -m benchmarks.village [--rounds 3] [--idle 30]     with VILLAGE_HOME of a village that is down
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from benchmarks.load import middle
from cluster import processes, supervisor
from cluster.cli.client import Client
from cluster.cli.status import MIB, memory_mb
from cluster.settings import Settings

RESULTS = Path(__file__).parent / "results" / "village.json"
VILLAGE = str(Path(sys.executable).parent / "village")


def members(settings: Settings, up: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Every process of the village."""
    return [psutil.Process(up.pid), *processes.belonging(settings.home)]


def cpu_seconds(settings: Settings, up: subprocess.Popen[bytes]) -> float:
    """Processor time that the village has used so far."""
    total = 0.0
    for process in members(settings, up):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def one(settings: Settings, idle_seconds: float) -> dict[str, float]:
    """Start, load the chat model, rest, measure, stop."""
    begun = time.monotonic()
    up = subprocess.Popen([VILLAGE, "up"], stdout=subprocess.DEVNULL)
    pause = threading.Event()
    try:
        while not supervisor.readiness(settings).get("ready"):
            pause.wait(0.1)
        found = {"ready_seconds": time.monotonic() - begun}
        Client(settings).post("/v1/chat", {"model_id": "seedling", "message": "Hello", "parameters": {"max_tokens": 4}})
        found["first_reply_seconds"] = time.monotonic() - begun
        pause.wait(10)
        before = cpu_seconds(settings, up)
        pause.wait(idle_seconds)
        found["idle_cpu_percent_of_one_core"] = 100 * (cpu_seconds(settings, up) - before) / idle_seconds
        all_of_it = members(settings, up)
        found["pss_mb"] = sum(memory_mb(process) for process in all_of_it)
        found["rss_sum_mb"] = sum(process.memory_info().rss for process in all_of_it) / MIB
        found["processes"] = len(all_of_it)
        return found
    finally:
        up.terminate()
        up.wait(60)


def main() -> None:
    """Measure, print, write."""
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--idle", type=float, default=30)
    told = ask.parse_args()
    settings = Settings()
    rows = [one(settings, told.idle) for _ in range(told.rounds)]
    for name in rows[0]:
        values = [row[name] for row in rows]
        print(f"{name:32} {middle(values):>24}   median {statistics.median(values):.2f}")
    RESULTS.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
