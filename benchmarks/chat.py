"""Chat: first token and tokens per second at 1, 8 and 32 requests, streamed and whole, beside its peers.

    python -m benchmarks.chat --model FOLDER [--url http://127.0.0.1:8080 --key KEY] [--peers bare,ours] [--rounds 3]

Peers, one at a time, started and stopped here (benchmarks/chat_peers.py):
    bare        AsyncLLM with its own defaults, called in its own process: no HTTP, no text leaves it
    bare-tuned  the same with our engine's arguments and environment
    vllm-serve  vLLM's own API server
    ray-serve   ray.serve.llm with its defaults
    ours        our gateway app with the engine in one process, on a TCP port: what the code costs
    door        a running village at --url: HAProxy, Serve replica and all (its own model of the same name or id)
Every request brings another prompt of the same length, asks for the same number of tokens and ignores the end token.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import uvloop

from benchmarks.chat_client import Sample, measure
from cluster.clock import iso, utc_now

RESULTS = Path(__file__).parent / "results"
START_SECONDS = 240


@dataclass(frozen=True)
class Cell:
    """Where a figure was taken."""

    peer: str
    streamed: bool
    concurrency: int


class Peer:
    """A server in a process of its own: it prints `ready URL MODEL KEY` once it answers."""

    def __init__(self, name: str, model: str, context: int) -> None:
        self.name, self.command = name, [sys.executable, "-m", "benchmarks.chat_peers", name, model, str(context)]

    async def __aenter__(self) -> "Peer":
        environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR", "RAY_USAGE_STATS_ENABLED": "0"}
        self.process = await asyncio.create_subprocess_exec(
            *self.command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment,
            stderr=None if os.environ.get("BENCH_VERBOSE") else asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        async with asyncio.timeout(START_SECONDS):
            _, self.url, self.model, self.key = (await self.answer("ready ")).split()
        return self

    async def answer(self, prefix: str) -> str:
        """The next line of its output that begins so."""
        assert self.process.stdout is not None
        while line := (await self.process.stdout.readline()).decode():
            if line.startswith(prefix):
                return line.rstrip()
        raise RuntimeError(f"{self.name} ended before it said {prefix!r}")

    async def sample(self, streamed: bool, concurrency: int, seconds: float, tokens: int) -> Sample:
        """One cell, with what it cost."""
        before = processor_seconds(self.process.pid)
        sample = await self._sample(streamed, concurrency, seconds, tokens)
        spent = processor_seconds(self.process.pid) - before
        return replace(sample, cpu_us_per_token=spent * 1e6 / max(1, sample.tokens))

    async def _sample(self, streamed: bool, concurrency: int, seconds: float, tokens: int) -> Sample:
        if self.url != "none":
            return await measure(self.url, self.model, self.key, streamed, concurrency, seconds, tokens)
        assert self.process.stdin is not None
        self.process.stdin.write(f"{int(streamed)} {concurrency} {seconds} {tokens}\n".encode())
        return Sample(**json.loads((await self.answer("sample ")).removeprefix("sample ")))

    async def __aexit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), 60)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


class Door:
    """A village that runs already."""

    def __init__(self, url: str, key: str, model: str) -> None:
        self.name, self.url, self.key, self.model = "door", url + "/openai/v1", key, model

    async def __aenter__(self) -> "Door":
        return self

    async def sample(self, streamed: bool, concurrency: int, seconds: float, tokens: int) -> Sample:
        """One cell."""
        return await measure(self.url, self.model, self.key, streamed, concurrency, seconds, tokens)

    async def __aexit__(self, *_: object) -> None:
        return None


def processor_seconds(pid: int) -> float:
    """Of a process and its children, those that run now."""
    total = 0.0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:2])
    return total


async def run(options: argparse.Namespace) -> dict[Cell, list[Sample]]:
    """Every cell of every peer, `rounds` times; peers alternate, so that a slow minute hits all of them."""
    samples: dict[Cell, list[Sample]] = defaultdict(list)
    for number in range(options.rounds):
        for name in options.peers if number % 2 == 0 else reversed(options.peers):
            peer = Door(options.url, options.key, options.door_model) if name == "door" else None
            try:
                async with peer or Peer(name, options.model, options.context) as started:
                    await cells(name, started, number, options, samples)
            except (TimeoutError, RuntimeError) as error:
                print(f"round {number + 1} {name}: {error or 'did not start'}", flush=True)
    return samples


async def cells(
    name: str, started: Any, number: int, options: argparse.Namespace, samples: dict[Cell, list[Sample]]
) -> None:
    """Every cell of one peer."""
    await started.sample(True, 2, 2, options.tokens)  # the first requests pay for what is made once
    for streamed, concurrency in product((True, False), options.concurrency):
        sample = await started.sample(streamed, concurrency, options.seconds, options.tokens)
        samples[Cell(name, streamed, concurrency)].append(sample)
        how = "stream" if streamed else "whole"
        speed, first = sample.tokens_per_second, sample.first_ms
        print(f"round {number + 1} {name:10} {how:6} x{concurrency:<2} {speed:7.0f} tok/s {first:7.1f} ms "
              f"{sample.cpu_us_per_token:6.0f} us/token", flush=True)  # fmt: skip


def spread(values: list[float]) -> dict[str, float]:
    """Of the rounds."""
    return {"min": round(min(values), 1), "median": round(statistics.median(values), 1), "max": round(max(values), 1)}


def table(samples: dict[Cell, list[Sample]]) -> list[dict[str, Any]]:
    """A row for each cell."""
    return [
        asdict(cell)
        | {
            "tokens_per_second": spread([sample.tokens_per_second for sample in rounds]),
            "cpu_us_per_token": spread([sample.cpu_us_per_token for sample in rounds]),
            "first_ms": spread([sample.first_ms for sample in rounds]),
            "requests": sum(sample.requests for sample in rounds),
            "errors": sum(sample.errors for sample in rounds),
        }
        for cell, rounds in samples.items()
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a checkpoint with a chat template")
    parser.add_argument("--peers", default="bare,bare-tuned,vllm-serve,ray-serve,ours,door")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each cell")
    parser.add_argument("--tokens", type=int, default=256, help="of each answer")
    parser.add_argument("--context", type=int, default=512, help="tokens that every peer is started with")
    parser.add_argument("--url", default="", help="of a running village, for `door`")
    parser.add_argument("--key", default="", help="an API key or token of it")
    parser.add_argument("--door-model", default="seedling", help="what that village calls the model")
    options = parser.parse_args()
    options.peers = [name for name in options.peers.split(",") if name != "door" or options.url]
    if options.url and urlsplit(options.url).scheme != "http":
        parser.error("--url takes http://")
    began = time.time()
    rows = table(uvloop.run(run(options)))
    report = {
        "at": iso(utc_now()), "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "took_s": round(time.time() - began),
        "arguments": {name: value for name, value in vars(options).items() if name not in ("key", "url", "model")},
        "rows": rows,
    }  # fmt: skip
    (RESULTS / ("chat_door.json" if options.url else "chat.json")).write_text(json.dumps(report, indent=1) + "\n")
    for row in sorted(rows, key=lambda row: (not row["streamed"], row["concurrency"], row["peer"])):
        speed, first, cost = row["tokens_per_second"], row["first_ms"], row["cpu_us_per_token"]["median"]
        print(
            f"{'stream' if row['streamed'] else 'whole':6} x{row['concurrency']:<2} {row['peer']:10} "
            f"{speed['median']:7.0f} tok/s ({speed['min']:.0f}..{speed['max']:.0f})  first {first['median']:7.1f} ms "
            f"({first['min']:.1f}..{first['max']:.1f})  {cost:6.0f} us/token  errors {row['errors']}"
        )


if __name__ == "__main__":
    main()
