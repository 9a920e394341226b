"""Several processes on one model: copies and shards train alike, and what one saved another number goes on from."""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import SHAPE, batches, loop
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from train import parallel
from train.loop import Loop, LoopConfig
from train.model.llama import Llama

STEPS = 6
SETTINGS = {"max_steps": STEPS, "warmup_steps": 0, "learning_rate": 1e-2, "precision": "fp32", "grokfast_lamb": 0.5}


def run(rank: int, world: int, strategy: str, folder: str, until: int) -> None:
    """A worker: trains to step `until`, from the checkpoint where there is one; rank 0 leaves checkpoint and losses."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet-{until}", rank=rank, world_size=world)
    torch.manual_seed(3)
    model = Llama(SHAPE)
    shared: Any = (
        parallel.shard(model, torch.device("cpu")) if strategy == "fsdp" else DistributedDataParallel(model)
    )  # fmt: skip
    kept: dict[str, Any] = {}
    made = Loop(
        shared, batches(part=(rank, world)), LoopConfig(**SETTINGS), evaluate=lambda _: (1.0, 0.0),
        save=lambda step, state: kept.update({str(step): state}), report=stop_at(until),
    )  # fmt: skip
    before = Path(folder) / "state.pt"
    if before.exists():
        made.restore(torch.load(before, weights_only=True))
    with contextlib.suppress(Stopped):
        made.run()
    state = made.state()
    if strategy == "fsdp":
        parallel.gather(shared, model)
        if rank == 0:
            assert not parallel.sharded(model)
            for name, tensor in model.state_dict().items():
                torch.testing.assert_close(tensor, state["model"][name])
    distributed.barrier()
    if rank == 0:
        torch.save(state, before)
    distributed.destroy_process_group()


class Stopped(Exception):
    pass


def stop_at(step: int) -> Any:
    def report(progress: Any) -> None:
        if progress.step == step:
            raise Stopped

    return report


def trained(worlds: list[tuple[int, str]]) -> dict[str, Any]:
    """The state after STEPS steps, an equal share of them by each (world, strategy)."""
    with tempfile.TemporaryDirectory() as folder:
        for number, (world, strategy) in enumerate(worlds, 1):
            until = STEPS * number // len(worlds)
            multiprocessing.spawn(run, (world, strategy, folder, until), nprocs=world)
        return torch.load(Path(folder) / "state.pt", weights_only=True)


@pytest.fixture(scope="module")
def copies() -> dict[str, Any]:
    return trained([(2, "ddp")])


def test_shards_train_as_copies_do_though_they_were_stopped_midway(copies: dict[str, Any]):
    shards = trained([(2, "fsdp"), (2, "fsdp")])
    for name, tensor in copies["model"].items():
        torch.testing.assert_close(shards["model"][name], tensor, rtol=1e-4, atol=1e-5)
    assert shards["position"] == copies["position"]


def test_a_lost_worker_changes_who_computes_and_not_what(copies: dict[str, Any]):
    """A batch has the same rows whoever takes them: gradients differ only by how rows weigh within a worker's mean."""
    fewer = trained([(2, "ddp"), (1, "ddp")])
    assert fewer["position"] == copies["position"]
    assert fewer["progress"]["tokens"] == copies["progress"]["tokens"]
    last = [state["progress"]["history"][-1][1] for state in (fewer, copies)]
    assert last[0] == pytest.approx(last[1], rel=0.2)


def test_parts_of_a_batch_add_up_to_the_whole():
    whole = loop(config=SETTINGS).run()
    parts = loop(config=SETTINGS | {"accumulate": 3}).run()
    for one, other in zip(whole.history, parts.history, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-3)
