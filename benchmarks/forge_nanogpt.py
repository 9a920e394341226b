"""Cognate's loop and Llama beside nanoGPT's loop and GPT-2, on the characters of Tiny Shakespeare, at one size.

Learners in alternating rounds in one process: the peer, in float32 as nanoGPT has it on a CPU; ours with the peer's
hyper-parameters and number of steps, in float32 and, where the processor computes it, in bf16; ours with the settings
that are best for it, for as long as the peer takes. All are judged in float32 on the whole last tenth of the
text, window by window.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import forge_peer as peer
from cluster.hardware import native_bf16
from train.data.packing import Batch, Batches, Position
from train.loop import Loop, LoopConfig
from train.model.llama import Llama
from train.model.shape import Shape

RESULTS = Path(__file__).parent / "results" / "forge_nanogpt.json"
ROUNDS = 10
CALIBRATION = 100  # steps
GOAL = 1.88  # nats per character, at the peer's number of steps
SAME: dict[str, Any] = {
    "max_steps": peer.STEPS, "learning_rate": peer.RATE, "final_learning_rate_ratio": peer.LAST_RATE / peer.RATE,
    "warmup_steps": peer.WARMUP, "weight_decay": peer.DECAY, "beta2": peer.BETA2, "clip_norm": peer.CLIP,
    "grokfast_lamb": 0.0, "precision": "fp32", "checkpoint_steps": 10**9, "checkpoint_seconds": 10.0**9,
}  # fmt: skip
BEST = SAME | {"learning_rate": 3e-3, "final_learning_rate_ratio": 0.02, "precision": "auto"}
BEST_SIZE = 12


class Windows(Batches):
    """Windows from anywhere in a text, as the peer has them; the position is the number of the batch."""

    def __init__(self, data: Tensor, size: int, seed: int) -> None:
        self.data, self.size, self.seed = data.numpy(), size, seed
        self.position, self.part = Position(), (0, 1)
        self.along = np.arange(peer.CONTEXT)
        self.whole = np.ones((size, peer.CONTEXT), dtype=np.int64)

    def __iter__(self) -> Iterator[Batch]:
        """For ever; every batch is drawn from its own number."""
        while True:
            chance = np.random.default_rng((self.seed, self.position.row))
            at = chance.integers(0, len(self.data) - peer.CONTEXT, self.size)[:, None] + self.along
            self.position = Position(0, self.position.row + 1)
            yield Batch(self.data[at], self.data[at + 1], self.whole)


class Ours:
    """Cognate's loop with everything that it does at a step."""

    def __init__(self, data: Tensor, vocabulary: int, settings: dict[str, Any], size: int = peer.BATCH) -> None:
        torch.manual_seed(1337)
        shape = Shape(peer.WIDTH, peer.LAYERS, peer.HEADS, 352, vocabulary, peer.CONTEXT)
        self.model, self.size = Llama(shape), size
        self.loop = Loop(
            self.model, Windows(data, size, 1337), LoopConfig(**settings), evaluate=lambda _: (0.0, 0.0),
            save=lambda *_: None, report=lambda _: None,
        )  # fmt: skip

    def run(self, until: int) -> None:
        """Train up to that step."""
        self.loop.run(until)

    def loss(self, data: Tensor) -> float:
        """See `over_all`."""
        return peer.over_all(self.model, data)


class Clock:
    """Wall and CPU seconds that were spent inside it."""

    def __init__(self) -> None:
        self.wall, self.cpu = 0.0, 0.0

    def __enter__(self) -> None:
        self.begun = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self.begun[0]
        self.cpu += time.process_time() - self.begun[1]


def calibrated(train: Tensor, vocabulary: int, steps: int) -> int:
    """How many steps ours takes, at its best settings, while the peer takes `steps`."""
    clocks = (Clock(), Clock())
    for clock, learner in zip(
        clocks, (peer.Peer(train, vocabulary), Ours(train, vocabulary, BEST, BEST_SIZE)), strict=True
    ):
        learner.run(10)
        with clock:
            learner.run(10 + CALIBRATION)
    return round(steps * clocks[0].wall / clocks[1].wall)


def main() -> None:
    """Print a table and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forge_nanogpt")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--steps", type=int, default=peer.STEPS, help="of the peer; fewer for a quick look")
    given, _ = parser.parse_known_args()
    torch.set_num_threads(given.threads)
    train, held_out, vocabulary = peer.characters()
    steps = calibrated(train, vocabulary, given.steps)
    same, best = SAME | {"max_steps": given.steps}, BEST | {"max_steps": steps}
    learners: dict[str, tuple[Any, int, int]] = {
        "nanoGPT's loop": (peer.Peer(train, vocabulary, given.steps), given.steps, peer.BATCH),
        "cognate, float32": (Ours(train, vocabulary, same), given.steps, peer.BATCH),
        "cognate, its best": (Ours(train, vocabulary, best, BEST_SIZE), steps, BEST_SIZE),
    }
    if native_bf16(torch.device("cpu")):
        narrow = Ours(train, vocabulary, same | {"precision": "bf16"})
        learners["cognate, bf16"] = (narrow, given.steps, peer.BATCH)
    clocks = {name: Clock() for name in learners}
    for number in range(1, given.rounds + 1):
        for name, (learner, total, _) in learners.items():
            with clocks[name]:
                learner.run(total * number // given.rounds)
    rows = {
        name: {
            "steps": total, "wall_seconds": clocks[name].wall, "cpu_seconds": clocks[name].cpu,
            "tokens_per_second": total * size * peer.CONTEXT / clocks[name].wall,
            "tokens_per_cpu_second": total * size * peer.CONTEXT / clocks[name].cpu,
            "validation_loss": learner.loss(held_out),
            "parameters": sum(p.numel() for p in learner.model.parameters()),
        }
        for name, (learner, total, size) in learners.items()
    }  # fmt: skip
    show(rows)
    told = {"goal": GOAL, "threads": given.threads, "rounds": given.rounds, "load": os.getloadavg(), "rows": rows}
    RESULTS.write_text(json.dumps(told | {"best": best, "best_size": BEST_SIZE}, indent=1) + "\n")


def show(rows: dict[str, dict[str, float]]) -> None:
    """The table."""
    print(f"{'':<24}{'steps':>8}{'seconds':>9}{'tokens/s':>10}{'per CPU s':>11}{'validation loss':>17}")
    for name, row in rows.items():
        print(
            f"{name:<24}{row['steps']:>8.0f}{row['wall_seconds']:>9.1f}{row['tokens_per_second']:>10.0f}"
            f"{row['tokens_per_cpu_second']:>11.0f}{row['validation_loss']:>17.4f}"
        )
    print(f"goals: at least the peer's tokens a second; at most {GOAL} at the same steps; lower in the same time")


if __name__ == "__main__":
    main()
