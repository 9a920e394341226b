"""The forge over a real store, with jobs as plain subprocesses: validation, ownership, retries, the registry."""

import asyncio
import json
import sys
import tarfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import pytest

from cluster.errors import Conflict, Forbidden, Invalid, ModelNotReady, NotFound
from cluster.identity.model import SYSTEM, Principal
from cluster.launcher import JobState
from cluster.settings import Settings
from cluster.store import Store
from train.models import Models
from train.phases import catalogue
from train.registry import Model, ModelState, Registry
from train.reporting import RunLog
from train.runs import Run, RunState
from train.service import Forge

ANNA = Principal(principal_id="user_anna", owner="user_anna", username="anna")
BEN = Principal(principal_id="user_ben", owner="user_ben", username="ben")


class SubprocessLauncher:
    """Jobs as plain processes of this machine. `replace` puts another program in the place of the training."""

    def __init__(self, replace: str | None = None) -> None:
        self.replace, self.jobs = replace, {}

    async def submit(self, job_id: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        if job_id not in self.jobs:
            words = command if self.replace is None else [sys.executable, "-c", self.replace]
            self.jobs[job_id] = await asyncio.create_subprocess_exec(*words)

    async def stop(self, job_id: str) -> None:
        if (job := self.jobs.get(job_id)) is not None and job.returncode is None:
            job.kill()
            await job.wait()

    async def state(self, job_id: str) -> JobState:
        if (job := self.jobs.get(job_id)) is None:
            return JobState.UNKNOWN
        if job.returncode is None:
            return JobState.RUNNING
        return JobState.SUCCEEDED if job.returncode == 0 else JobState.FAILED

    async def log(self, job_id: str) -> str:
        return ""

    async def ended(self) -> None:
        for job in self.jobs.values():
            await job.wait()


class Village:
    def __init__(self, store: Store, home: Path, program: str) -> None:
        self.now = datetime(2026, 11, 21, 12, tzinfo=UTC)
        self.store, self.launcher = store, SubprocessLauncher(program)
        self.settings = Settings(home=home, redis_url=store.url)
        self.models = Models(store, self.clock)
        self.forge = Forge(store, self.launcher, self.settings, self.clock, self.models)
        self.registry = Registry(store, self.settings.home, self.clock)

    def clock(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now

    def write_model(self, run: Run) -> None:
        folder = self.settings.home / "models" / run.model_id
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights" * 100)
        told = {"phases": ["cognate"], "parameters": 7, "context_length": 64, "metrics": {"loss": 1.5}, "lineage": {}}
        (folder / "training.json").write_text(json.dumps(told))


@pytest.fixture
async def village(store: Store, tmp_path: Path):
    made = Village(store, tmp_path, "raise SystemExit(1)")
    yield made
    await made.launcher.ended()


async def test_a_run_is_recorded_with_its_resolved_configuration_and_submitted(village: Village):
    run = await village.forge.start(ANNA, [("cognate", {"max_steps": 30, "batch_size": 4})])
    assert run.run_id.startswith("task_")
    assert (run.config["max_steps"], run.config["batch_size"], run.config["vocab_size"]) == (30, 4, 2048)
    assert run.job_id in village.launcher.jobs
    assert await village.forge.get(ANNA, run.run_id) == run
    assert (await village.models.get(ANNA, run.model_id)).state is ModelState.TRAINING


async def test_the_documented_example_is_accepted(village: Village):
    parameters = {
        "base_models": ["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "Qwen/Qwen2-1.5B-Instruct"],
        "target_architecture": "auto", "merge_strategy": "evolutionary",
    }  # fmt: skip
    run = await village.forge.start(ANNA, [("cognate", parameters)])
    assert tuple(run.config["base_models"]) == tuple(parameters["base_models"])


@pytest.mark.parametrize(
    ("phase", "parameters", "error", "detail"),
    [
        ("no_such_phase", {}, Invalid, "allowed_values"),
        ("cognate", {"no_such_parameter": 1}, Invalid, "field"),
        ("cognate", {"max_steps": 0}, Invalid, "field"),
        ("cognate", {"target_architecture": "llama-9t"}, Invalid, "allowed_values"),
        ("cognate", {"parameter_budget": 10}, Invalid, "minimum"),
    ],
)
async def test_what_cannot_run_is_refused_before_anything_is_recorded(village, phase, parameters, error, detail):
    with pytest.raises(error) as refused:
        await village.forge.start(ANNA, [(phase, parameters)])
    assert detail in refused.value.details
    assert (await village.forge.page(SYSTEM)).total == 0


async def test_a_folder_as_base_model_must_exist_and_is_for_admins(village: Village):
    with pytest.raises(Forbidden):
        await village.forge.start(ANNA, [("cognate", {"base_models": ["/etc"]})])
    with pytest.raises(Invalid):
        await village.forge.start(SYSTEM, [("cognate", {"base_models": ["/no/such/folder"]})])
    with pytest.raises(NotFound):
        await village.forge.start(ANNA, [("cognate", {"base_models": ["model_of_somebody_else"]})])


async def test_all_eight_phases_are_named_and_every_configuration_loads():
    assert len(catalogue.PHASES) == 8
    for name in ("cognate", "seedling"):
        assert catalogue.phase("cognate", catalogue.values(name)).config


async def test_runs_and_models_of_others_do_not_exist(village: Village):
    run = await village.forge.start(ANNA, [("cognate", {})])
    for ask in (village.forge.get, village.forge.logs, village.forge.cancel):
        with pytest.raises(NotFound):
            await ask(BEN, run.run_id)
    with pytest.raises(NotFound):
        await village.models.get(BEN, run.model_id)
    assert (await village.models.page(BEN)).total == 0
    assert (await village.models.page(ANNA)).total == (await village.models.page(SYSTEM)).total == 1


async def test_a_failing_job_is_tried_max_attempts_times_and_then_the_run_has_failed(village: Village):
    run = await village.forge.start(ANNA, [("cognate", {})])
    for attempt in range(run.max_attempts):
        assert (await village.forge.get(ANNA, run.run_id)).attempt == attempt + 1
        await village.launcher.ended()
        assert await village.forge.reconcile()
    after = await village.forge.get(ANNA, run.run_id)
    assert (after.state, after.error) == (RunState.FAILED, "its job is FAILED")
    assert len(village.launcher.jobs) == run.max_attempts
    assert await village.forge.reconcile() == []
    assert (await village.models.get(ANNA, run.model_id)).state is ModelState.FAILED
    kinds = [event.kind for event in await village.store.events()]
    assert kinds == ["training.created", "training.retried", "training.retried", "training.failed"]


async def test_a_run_whose_submission_was_lost_is_submitted_again_as_the_same_attempt(village: Village):
    run = await village.forge.start(ANNA, [("cognate", {})])
    await village.launcher.ended()
    village.launcher.jobs.clear()
    assert await village.forge.reconcile() == []  # its maker may still be submitting it
    village.now += timedelta(minutes=1)
    assert [touched.attempt for touched in await village.forge.reconcile()] == [1]
    assert run.job_id in village.launcher.jobs


async def test_cancelling_stops_the_job_once(store: Store, tmp_path: Path):
    village = Village(store, tmp_path, "import time; time.sleep(60)")
    run = await village.forge.start(ANNA, [("cognate", {})])
    assert (await village.forge.cancel(ANNA, run.run_id)).state is RunState.CANCELLED
    assert await village.launcher.state(run.job_id) is JobState.FAILED
    with pytest.raises(Conflict):
        await village.forge.cancel(ANNA, run.run_id)
    assert await village.forge.reconcile() == []
    assert (await village.models.get(ANNA, run.model_id)).state is ModelState.CANCELLED


async def test_a_model_is_registered_once_however_often_it_is_tried(village: Village):
    run = await village.forge.start(ANNA, [("cognate", {})])
    village.write_model(run)
    first, again = await village.registry.register(run), await village.registry.register(run)
    assert first == again
    assert (first.state, first.parameters, first.phases_completed) == (ModelState.COMPLETED, 7, ("cognate",))
    assert [event.kind for event in await village.store.events()].count("model.created") == 1
    assert (await village.models.page(ANNA, status="completed", phase="cognate")).total == 1
    assert (await village.models.page(ANNA, status="training")).total == 0


async def test_a_download_is_a_tar_of_the_folder_and_always_the_same(village: Village):
    run = await village.forge.start(ANNA, [("cognate", {})])
    with pytest.raises(ModelNotReady):
        await village.models.archive(ANNA, run.model_id)
    village.write_model(run)
    await village.registry.register(run)
    whole = [b"".join([piece async for piece in await village.models.archive(ANNA, run.model_id)]) for _ in range(2)]
    assert whole[0] == whole[1]
    with tarfile.open(fileobj=BytesIO(whole[0])) as tar:
        assert tar.getnames() == [f"{run.model_id}/model.safetensors", f"{run.model_id}/training.json"]
        assert tar.extractfile(tar.getnames()[0]).read() == b"weights" * 100


async def test_only_its_owner_deletes_a_public_model(village: Village):
    run = await village.forge.start(ANNA, [("cognate", {})], public=True, model_name="shared")
    with pytest.raises(Conflict):
        await village.models.delete(ANNA, run.model_id)
    village.write_model(run)
    await village.registry.register(run)
    assert (await village.models.get(BEN, "shared")).model_id == run.model_id
    assert (await village.models.page(BEN)).total == 1
    with pytest.raises(NotFound):
        await village.models.delete(BEN, "shared")
    await village.models.delete(ANNA, "shared")
    assert not (village.settings.home / "models" / run.model_id).exists()
    assert await village.store.find(Model, run.model_id) is None


async def test_any_number_of_callers_start_one_seedling(village: Village):
    runs = await asyncio.gather(*(village.forge.ensure_seedling() for _ in range(5)))
    assert {run.run_id for run in runs if run} == {"task_seedling_1"}
    assert len(village.launcher.jobs) == 1
    run = runs[0]
    assert run is not None and run.public and run.model_name == "seedling"
    village.write_model(run)
    await village.registry.register(run)
    assert await village.forge.ensure_seedling() is None
    assert (await village.models.get(BEN, "seedling")).model_id == run.model_id


async def test_a_failed_seedling_is_tried_anew_only_when_asked(village: Village):
    run = await village.forge.ensure_seedling()
    assert run is not None
    await village.forge.cancel(SYSTEM, run.run_id)
    assert (await village.forge.ensure_seedling()).run_id == run.run_id
    assert (await village.forge.ensure_seedling(again=True)).run_id == "task_seedling_2"


async def test_the_log_outlives_a_line_that_a_kill_cut_off(village: Village):
    run = await village.forge.start(ANNA, [("cognate", {})])
    log = RunLog(village.settings.home / "runs" / run.run_id, village.clock)
    for step in range(5):
        log.note("checkpoint", step=step)
    with log.path.open("a") as file:
        file.write('{"at": "2026-')
    assert [line["step"] for line in await village.forge.logs(ANNA, run.run_id, tail=3)] == [3, 4]
