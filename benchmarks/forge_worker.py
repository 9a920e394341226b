"""Training tokens per second: cognate's loop inside its Ray worker beside a plain PyTorch loop of the same model.

Both run in the same Ray worker process, in alternating rounds, so that threads, precision and the machine's mood are
the same. Ours has everything a run has: packing, document masks, GrokFast (at 0 as in the seedling), clipping, history,
progress events through a real Redis and checkpoints. The plain loop has only the forward pass, backward pass, clipping
and AdamW.
"""

import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "forge_worker.json"
ROUNDS = 7
STEPS = 60
GOAL = 0.95


class Stopwatch:
    """Tokens per second, and per CPU second: the latter hardly sees what else the machine does."""

    def __init__(self, config: Any) -> None:
        self.tokens = STEPS * config.batch_size * config.context_length
        self.begun, self.begun_cpu = time.perf_counter(), time.process_time()

    def rates(self) -> tuple[float, float]:
        """Since it was made."""
        seconds, cpu_seconds = time.perf_counter() - self.begun, time.process_time() - self.begun_cpu
        return self.tokens / seconds, self.tokens / cpu_seconds


def plain(config: Any, batches: Any, make: Callable[[], Any]) -> tuple[float, float]:
    """The loop that anybody would write."""
    import torch
    from torch.nn import functional as F

    from cluster.hardware import native_bf16

    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True)
    data = iter(batches())
    watch = Stopwatch(config)
    for _ in range(STEPS):
        tokens, targets, documents = (torch.from_numpy(array) for array in next(data))
        with torch.autocast("cpu", torch.bfloat16, enabled=native_bf16(torch.device("cpu"))):
            logits = model(tokens, documents)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
    return watch.rates()


def ours(given: dict[str, str], config: Any, batches: Any, make: Callable[[], Any], number: int) -> tuple[float, float]:
    """The run's loop, its reports and checkpoints included."""
    import torch

    from cluster.clock import utc_now
    from cluster.store import Store
    from train.loop import Loop, LoopConfig
    from train.manifest import Checkpoints
    from train.reporting import Reporter
    from train.runs import Run

    settings = config.model_dump(include=set(LoopConfig.model_fields)) | {"max_steps": STEPS}
    checkpoints = Checkpoints(Path(given["home"]) / f"round-{number}")
    reporter = Reporter(Store(given["redis"]), Run.model_validate_json(given["run"]), utc_now)
    loop = Loop(
        make(), batches(), LoopConfig(**settings), evaluate=lambda _: (1.0, 0.0), report=reporter.report,
        save=lambda step, state: checkpoints.save(step, lambda file: torch.save(state, file)) and None,
    )  # fmt: skip
    watch = Stopwatch(config)
    loop.run()
    return watch.rates()


def work(given: dict[str, str]) -> None:
    """In the Ray worker: the rounds, and their result into a file."""
    import torch

    from train.data.packing import Batches
    from train.data.sources import corpus
    from train.model.llama import Llama
    from train.model.shape import choose
    from train.model.tokenizer import Tokenizer
    from train.phases import catalogue

    config: Any = catalogue.phase("cognate", catalogue.values("seedling")).config
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    text = [d.text or "\n".join(t.content for t in d.turns) for d in corpus(Path("/"), 0.04, 42).training]
    tokenizer = Tokenizer.train(text, config.vocab_size)
    data = {"text": [tokenizer.text(content) for content in text]}
    shape = choose(config.target_architecture, 0, tokenizer.vocab_size, config.context_length)

    def batches() -> Batches:
        return Batches(data, {}, context=config.context_length, size=config.batch_size, pad=0, seed=1)

    def make() -> Llama:
        torch.manual_seed(1)
        return Llama(shape)

    plain(config, batches, make)  # warm-up
    rates: dict[str, list[tuple[float, float]]] = {"plain": [], "cognate": []}
    for number in range(ROUNDS):
        rates["plain"].append(plain(config, batches, make))
        rates["cognate"].append(ours(given, config, batches, make, number))
    (Path(given["home"]) / "rates.json").write_text(json.dumps(rates))


def main() -> None:
    """Print a table and write `results/forge.json`."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from cluster.store import server
    from train.run import WORKER_ENVIRONMENT

    with tempfile.TemporaryDirectory(prefix="village-bench-") as name:
        home = Path(name)
        redis = server.start(home / "redis", home / "redis.sock")
        try:
            given = {"home": name, "redis": f"unix://{home}/redis.sock"}
            given["run"] = asyncio.run(running_run(given["redis"]))
            ray.init(address="local", include_dashboard=False, runtime_env={"env_vars": WORKER_ENVIRONMENT})
            TorchTrainer(
                work, train_loop_config=given, scaling_config=ScalingConfig(num_workers=1),
                run_config=RunConfig(name="bench", storage_path=name),
            ).fit()  # fmt: skip
            rates: dict[str, list[list[float]]] = json.loads((home / "rates.json").read_text())
        finally:
            ray.shutdown()
            redis.kill()
            redis.wait()
    show(rates)


async def running_run(redis: str) -> str:
    """A run whose progress may be reported."""
    from cluster.clock import utc_now
    from cluster.errors import Unavailable
    from cluster.store import Store
    from train.runs import Run, RunState, Stage

    store, at = Store(redis), utc_now()
    while True:
        try:
            await store.ping()
            break
        except Unavailable:
            await asyncio.sleep(0.05)
    run = Run(
        run_id="task_bench", owner="user_bench", model_id="model_bench", model_name="bench",
        state=RunState.RUNNING,
        stages=(Stage(phase="cognate", config={}, total_steps=STEPS),), created_at=at, updated_at=at,
    )  # fmt: skip
    await store.create(run)
    await store.close()
    return run.model_dump_json()


def show(rates: dict[str, list[list[float]]]) -> None:
    """The table, the ratio of each pair of neighbouring rounds, and the file."""
    whole: dict[str, Any] = {"goal": GOAL, "steps": STEPS, "load": os.getloadavg()}
    print(f"{'tokens':<28}{'min':>10}{'median':>10}{'max':>10}")
    for i, unit in enumerate(("second", "CPU second")):
        columns = {name: [pair[i] for pair in values] for name, values in rates.items()}
        ratios = [mine / theirs for mine, theirs in zip(columns["cognate"], columns["plain"], strict=True)]
        for name, values in columns.items():
            low, middle, high = min(values), statistics.median(values), max(values)
            print(f"{f'{name}, per {unit}':<28}{low:>10.0f}{middle:>10.0f}{high:>10.0f}")
        print(f"{'cognate / plain':<28}{min(ratios):>10.3f}{statistics.median(ratios):>10.3f}{max(ratios):>10.3f}")
        whole[f"tokens per {unit}"] = columns | {"ratios": ratios}
    print(f"goal: a median of at least {GOAL}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
