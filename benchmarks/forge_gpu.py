"""The training step of a 124 M model in bf16 on one GPU: tokens per second, model FLOPs utilisation, peak memory.

`python -m benchmarks.forge_gpu [--tiny]`; torch alone, no Ray. `--tiny` is the same code at a size that a CPU can do.
Operations per token are 6 N + 12 L W T (arXiv:2204.02311, appendix B): the weights' and attention's, forward and
backward. What a GPU could do at most is read off its name; unknown names leave the utilisation out.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from train.loop import LoopConfig, autocast, optimizer_for
from train.model.llama import Llama
from train.model.shape import Shape

RESULTS = Path(__file__).parent / "results" / "forge_gpu.json"
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # dense bf16 FLOP/s
LARGE = Shape(width=768, layers=12, heads=12, feed_forward=2048, vocab_size=50_304, context=1024)
TINY = Shape(width=128, layers=2, heads=2, feed_forward=352, vocab_size=512, context=128)


def operations_per_token(shape: Shape) -> float:
    """Of a training step."""
    return 6 * shape.parameters + 12 * shape.layers * shape.width * shape.context


def measure(shape: Shape, rows: int, device: torch.device, compiled: bool, steps: int, rounds: int) -> dict[str, Any]:
    """Tokens per second of `rounds` rounds of `steps` steps each."""
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    model = Llama(shape).to(device)
    run: nn.Module = torch.compile(model) if compiled else model  # type: ignore[assignment]
    config = LoopConfig.model_validate({"precision": "bf16"})
    optimizer = optimizer_for(model, config)
    tokens = torch.randint(shape.vocab_size, (rows, shape.context + 1), device=device)

    def step() -> None:
        with autocast("bf16", device):
            logits = run(tokens[:, :-1])  # one document a row: causal attention without a mask
        F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(5):
        step()
    wait()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rates = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        rates.append(steps * rows * shape.context / (time.perf_counter() - begun))
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    peak = next((value for key, value in PEAK.items() if key in name), None)
    best = statistics.median(rates)
    return {
        "device": name, "parameters": shape.parameters, "rows": rows, "context": shape.context, "compiled": compiled,
        "tokens_per_second": rates, "median": best,
        "utilisation": best * operations_per_token(shape) / peak if peak else None,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }  # fmt: skip


def main() -> None:
    """Print the figures; on a GPU write them to `results/forge_gpu.json` too."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--rows", type=int, default=0)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not given.tiny:
        raise SystemExit("there is no GPU here; --tiny measures the same code on the CPU")
    shape, rows = (TINY, given.rows or 2) if given.tiny else (LARGE, given.rows or 32)
    steps, rounds = (3, 3) if given.tiny else (20, 7)
    ways = (False,) if given.tiny else (False, True)
    found = [measure(shape, rows, device, compiled, steps, rounds) for compiled in ways]
    print(json.dumps(found, indent=1))
    if device.type == "cuda":
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"torch": torch.__version__, "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
