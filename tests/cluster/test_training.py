"""Training on a real Ray, with its worker killed in mid-work."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from eventually import eventually
from jobs import Processes

from cluster.clock import utc_now
from cluster.identity.model import SYSTEM
from cluster.settings import Settings
from cluster.store import Store
from train.models import Models
from train.runs import RunState
from train.service import Forge

SMALL = {
    "vocab_size": 512, "context_length": 64, "batch_size": 2, "max_steps": 500, "checkpoint_steps": 25,
    "held_out_tokens": 512, "threads": 1, "grokfast_lamb": 0.5,
}  # fmt: skip


@pytest.fixture
async def forge(store: Store, tmp_path: Path) -> AsyncIterator[Forge]:
    processes = Processes()
    settings = Settings(home=tmp_path, redis_url=store.url)
    yield Forge(store, processes, settings, utc_now, Models(store, utc_now))
    await processes.stop("all")


async def lines(forge: Forge, run_id: str, message: str) -> list[dict[str, Any]]:
    return [line for line in await forge.logs(SYSTEM, run_id, tail=10_000) if line["message"] == message]


@pytest.mark.timeout(300)
async def test_a_killed_training_worker_resumes_from_its_last_checkpoint_and_ends(forge: Forge):
    run = await forge.start(SYSTEM, [("cognate", SMALL)], model_name="survivor")

    async def well_under_way() -> bool:
        return any(line["step"] >= 75 for line in await lines(forge, run.run_id, "checkpoint"))

    await eventually(well_under_way, within=150)
    worker = (await lines(forge, run.run_id, "worker started"))[0]["pid"]
    os.kill(worker, signal.SIGKILL)

    async def over() -> bool:
        return (await forge.get(SYSTEM, run.run_id)).state not in (RunState.PENDING, RunState.RUNNING)

    await eventually(over, within=120)
    ended = await forge.get(SYSTEM, run.run_id)
    assert (ended.state, ended.attempt, ended.error) == (RunState.COMPLETED, 1, "")

    log = await forge.logs(SYSTEM, run.run_id, tail=10_000)
    resumed = next(i for i, line in enumerate(log) if line["message"] == "resumed")
    before = [line["step"] for line in log[:resumed] if line["message"] == "checkpoint"]
    assert log[resumed]["step"] == before[-1]
    assert len(await lines(forge, run.run_id, "training from the start")) == 1

    events = [event for event in await forge.store.events(limit=10_000) if event.subject == run.run_id]
    told = [event.data["step"] for event in events if event.kind == "training.progress"]
    again = next(i for i in range(1, len(told)) if told[i] <= told[i - 1] or told[i] > before[-1])
    assert all(step > before[-1] for step in told[again:])
    assert told[-1] == SMALL["max_steps"]
    assert [event.kind for event in events].count("training.completed") == 1

    model = await forge.models.get(SYSTEM, "survivor")
    assert model.metrics["held_out_loss"] < model.metrics["held_out_loss_before"]
    assert model.metrics["tokens"] == SMALL["max_steps"] * SMALL["batch_size"] * SMALL["context_length"]
    await loads(Path(model.path))


async def loads(folder: Path) -> None:
    """In a process of its own: importing transformers here would stay with the whole session."""
    check = "import sys; from transformers import pipeline; print(pipeline('text-generation', sys.argv[1])('Hello'))"
    job = await asyncio.create_subprocess_exec(sys.executable, "-c", check, str(folder))
    assert await job.wait() == 0
