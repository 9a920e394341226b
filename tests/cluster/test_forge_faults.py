"""A training whose job, node or base model is lost, on a real Ray; the run ends as an unbroken one does."""

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from eventually import eventually
from jobs import Processes
from tiny_forge import TINY
from tiny_forge import forge as forged

from cluster.clock import utc_now
from cluster.identity.model import SYSTEM
from cluster.settings import Settings
from cluster.store import Store
from train.models import Models
from train.phases.phase import run_folder
from train.runs import FINAL, Run, RunState
from train.service import Forge
from train.stage import Ended

LONG = TINY | {"max_steps": 400, "checkpoint_steps": 20, "threads": 1}
JOBS_END, NODES_END = random.Random(14).sample(range(60, 300), 2)  # the steps at or after which they are killed


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, list[float]]:
    """What the run comes to when nothing happens to it, and the loss of every step."""
    home = tmp_path_factory.mktemp("unbroken")
    (ended,) = forged(home, [("cognate", LONG)])
    curve = json.loads((run_folder(home, "task_tiny") / "0-cognate" / "curve.json").read_text())
    return ended, [step[1] for step in curve["steps"]]


@pytest.fixture
async def jobs() -> AsyncIterator[Processes]:
    processes = Processes()
    yield processes
    await processes.stop("all")


@pytest.fixture
def forge(store: Store, tmp_path: Path, jobs: Processes) -> Forge:
    return Forge(store, jobs, Settings(home=tmp_path, redis_url=store.url), utc_now, Models(store, utc_now))


async def noted(forge: Forge, run: Run, message: str) -> list[dict[str, Any]]:
    lines = await forge.logs(SYSTEM, run.run_id, tail=10_000)
    return [line for line in lines if line["message"] == message]


async def over(forge: Forge, run: Run) -> bool:
    return (await forge.get(SYSTEM, run.run_id)).state in FINAL


@pytest.mark.timeout(300)
async def test_a_job_that_is_killed_is_taken_up_again_and_ends_as_if_it_had_not_been(
    forge: Forge, jobs: Processes, unbroken: tuple[Ended, list[float]]
):
    """Job, Ray and all of its workers: what is lost is what came after the last checkpoint."""
    run = await forge.start(SYSTEM, [("cognate", LONG)])

    async def well_under_way() -> bool:
        return any(line["step"] >= JOBS_END for line in await noted(forge, run, "checkpoint"))

    await eventually(well_under_way, within=120)
    await jobs.stop(run.job_id)

    async def ended() -> bool:
        await forge.reconcile()
        return await over(forge, run)

    await eventually(ended, within=150)
    broken = await forge.get(SYSTEM, run.run_id)
    assert (broken.state, broken.attempt) == (RunState.COMPLETED, 2)
    saved = [line["step"] for line in await noted(forge, run, "checkpoint")]
    resumed = (await noted(forge, run, "resumed"))[0]["step"]
    assert resumed >= JOBS_END and resumed in saved
    await as_unbroken(forge, run, unbroken)


async def as_unbroken(forge: Forge, run: Run, unbroken: tuple[Ended, list[float]]) -> None:
    """The same loss at every step, and the same quality in the end."""
    ended, losses = unbroken
    broken = await forge.get(SYSTEM, run.run_id)
    assert broken.stages[0].after == pytest.approx(ended.after.model_dump())
    steps = (await forge.curves(SYSTEM, run.run_id))[0]["steps"]
    assert [step[0] for step in steps] == list(range(1, LONG["max_steps"] + 1))
    assert [step[1] for step in steps] == pytest.approx(losses)


@pytest.mark.timeout(280)
async def test_a_base_model_that_cannot_be_had_ends_the_run_with_its_cause(forge: Forge):
    """No hub can be reached from a closed network; where one can, there is no such model."""
    run = await forge.start(SYSTEM, [("cognate", TINY | {"base_models": ["no-such-owner/no-such-model"]})])
    await eventually(lambda: over(forge, run), within=200)
    ended = await forge.get(SYSTEM, run.run_id)
    assert (ended.state, ended.cause) == (RunState.FAILED, "base_model")
    assert "no-such-owner/no-such-model" in ended.error

    async def told() -> bool:
        model = await forge.models.get(SYSTEM, run.model_id)
        return (model.state, model.cause) == ("failed", "base_model")

    await eventually(told, within=10)


@pytest.mark.timeout(280)
async def test_a_cancelled_run_stops_within_seconds_and_can_be_resumed(forge: Forge, jobs: Processes):
    run = await forge.start(SYSTEM, [("cognate", LONG | {"max_steps": 5000})])

    async def under_way() -> bool:
        return bool(await noted(forge, run, "checkpoint"))

    await eventually(under_way, within=150)
    worker = psutil.Process((await noted(forge, run, "worker started"))[0]["pid"])
    await forge.cancel(SYSTEM, run.run_id)
    await eventually(lambda: asyncio.to_thread(lambda: not worker.is_running()), within=10)
    resumed = await forge.resume(SYSTEM, run.run_id)
    assert (resumed.state, resumed.attempt) == (RunState.PENDING, 2)
    await eventually(lambda: again(forge, run), within=120)
    os.kill(jobs.by_id[resumed.job_id].pid, signal.SIGTERM)


async def again(forge: Forge, run: Run) -> bool:
    return bool(await noted(forge, run, "resumed"))


@pytest.mark.timeout(240)
async def test_a_node_that_is_lost_is_gone_on_without(
    forge: Forge, jobs: Processes, unbroken: tuple[Ended, list[float]]
):
    """As a spot machine goes: its raylet and all its workers at once. The run goes on where there is room."""
    from ray.cluster_utils import Cluster

    quickly = {"health_check_period_ms": 500, "health_check_timeout_ms": 1000, "health_check_failure_threshold": 2,
               "health_check_initial_delay_ms": 0}  # fmt: skip
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": quickly})
    try:
        spot = cluster.add_node(num_cpus=2)
        jobs.environment = {"RAY_ADDRESS": cluster.address}
        run = await forge.start(SYSTEM, [("cognate", LONG)])

        async def well_under_way() -> bool:
            return any(line["step"] >= NODES_END for line in await noted(forge, run, "checkpoint"))

        await eventually(well_under_way, within=150)
        os.kill((await noted(forge, run, "worker started"))[0]["pid"], signal.SIGKILL)
        cluster.remove_node(spot, allow_graceful=False)
        cluster.add_node(num_cpus=2)
        await eventually(lambda: over(forge, run), within=120)
    finally:
        cluster.shutdown()
    ended = await forge.get(SYSTEM, run.run_id)
    assert (ended.state, ended.error) == (RunState.COMPLETED, "")
    resumed = (await noted(forge, run, "resumed"))[0]["step"]
    assert resumed >= NODES_END
    await as_unbroken(forge, run, unbroken)
