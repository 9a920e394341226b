"""The forge's endpoints against the real service, with jobs that are only noted."""

import io
import json
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from contract.shapes import mismatches
from http_harness import Client

from cluster.clock import utc_now
from cluster.launcher import JobState
from serve_apps.core import Core
from serve_apps.dialects.aivillage.shapes_models import in_words, size_in_words
from train.models import Models
from train.runs import Run, RunEvent, StageState, advance, with_stage
from train.service import Forge

EXAMPLES = json.loads((Path(__file__).parents[2] / "contract" / "examples.json").read_text())


class NotedJobs:
    """A launcher that starts nothing."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobState] = {}

    async def submit(self, job_id: str, command, environment) -> None:
        self.jobs[job_id] = JobState.RUNNING

    async def stop(self, job_id: str) -> None:
        self.jobs[job_id] = JobState.STOPPED

    async def state(self, job_id: str) -> JobState:
        return self.jobs.get(job_id, JobState.UNKNOWN)

    async def log(self, job_id: str) -> str:
        return ""


@pytest.fixture
def core(core: Core) -> Core:
    core.models = Models(core.store, utc_now)
    core.forge = Forge(core.store, NotedJobs(), core.settings, utc_now, core.models)
    return core


async def start(client: Client, headers, **fields):
    return await client.post(
        "/v1/models/train", headers=headers, json={"phase_name": "cognate", "max_steps": 5} | fields
    )


async def finished(core: Core, run_id: str) -> None:
    """As a worker leaves a run: its model's folder, then the records."""
    run = await core.store.get(Run, run_id)
    folder = core.settings.home / "models" / run.model_id
    folder.mkdir(parents=True)
    told = {"phases": ["cognate"], "parameters": 7, "context_length": 64, "metrics": {"accuracy": 0.5}, "lineage": {}}
    (folder / "training.json").write_text(json.dumps(told))
    (folder / "model.safetensors").write_bytes(b"weights" * 300)
    await core.forge.registry.register(run)
    await core.store.change(Run, run_id, lambda r: with_stage(r, 0, state=StageState.PASSED, seconds=10.0))
    for event in (RunEvent.START, RunEvent.COMPLETE):
        at = datetime.now(UTC) + timedelta(seconds=10 if event is RunEvent.COMPLETE else 0)
        await core.store.change(Run, run_id, lambda r, event=event, at=at: advance(r, event, at))


async def test_a_run_is_started_watched_and_cancelled(client: Client, core: Core, user):
    ann, bob = await user("ann"), await user("bob")
    answer = await start(client, ann)
    assert answer.status_code == 200, answer.text
    assert not mismatches(EXAMPLES["aivillage POST /v1/models/train"]["response"], answer.json())
    assert answer.json()["message"] == "Training started for phase cognate"
    task = answer.json()["data"]["task_id"]
    status = await client.get(f"/v1/models/train/{task}/status", headers=ann)
    assert not mismatches(EXAMPLES["aivillage GET /v1/models/train/{task_id}/status"]["response"], status.json())
    assert status.json()["data"]["status"] == "queued"
    assert (await client.get(f"/v1/models/train/{task}/status", headers=bob)).status_code == 404
    assert (await client.get(f"/v1/models/train/{task}/logs", headers=ann)).json()["data"]["logs"] == []
    assert (await client.delete(f"/v1/models/train/{task}", headers=bob)).status_code == 404
    assert (await client.delete(f"/v1/models/train/{task}", headers=ann)).json()["data"]["status"] == "cancelled"
    assert (await client.post(f"/v1/models/train/{task}/cancel", headers=ann)).status_code == 409


async def test_a_model_is_listed_downloaded_and_deleted(client: Client, core: Core, user):
    ann, bob = await user("ann"), await user("bob")
    task = (await start(client, ann)).json()["data"]["task_id"]
    training = (await client.get("/v1/models", headers=ann)).json()["data"]["models"][0]
    assert training["status"] == "training" and training["download_url"] is None
    waiting = await client.get(f"/v1/models/{training['model_id']}/download", headers=ann)
    assert waiting.status_code == 503
    await finished(core, task)
    listed = await client.get("/v1/models", headers=ann, params={"status": "completed", "phase": "cognate"})
    assert not mismatches(EXAMPLES["aivillage GET /v1/models"]["response"], listed.json())
    model = listed.json()["data"]["models"][0]
    assert (model["metrics"]["accuracy"], listed.json()["data"]["total_count"]) == (0.5, 1)
    assert (await client.get("/v1/models", headers=bob)).json()["data"]["models"] == []
    download = await client.get(model["download_url"], headers=ann)
    with tarfile.open(fileobj=io.BytesIO(download.content)) as tar:
        assert f"{model['model_id']}/model.safetensors" in tar.getnames()
    assert (await client.get(model["download_url"], headers=bob)).status_code == 404
    assert (await client.delete(f"/v1/models/{model['model_id']}", headers=bob)).status_code == 404
    assert (await client.delete(f"/v1/models/{model['model_id']}", headers=ann)).json()["data"]["deleted"]
    assert (await client.get(model["download_url"], headers=ann)).status_code == 404


async def test_an_estimate_is_what_such_a_run_took_before(client: Client, core: Core, user):
    ann = await user()
    first = (await start(client, ann)).json()["data"]
    assert first["estimated_duration"] == "unknown"
    await finished(core, first["task_id"])
    assert (await start(client, ann, max_steps=30)).json()["data"]["estimated_duration"] == "1 minute"


@pytest.mark.parametrize(
    "fields",
    [{"phase_name": "no_such_phase"}, {"real_training": False}, {"max_steps": 0}, {"parameters": {"nonsense": 1}}],
)
async def test_a_wish_that_makes_no_sense_is_a_validation_error(client: Client, user, fields):
    answer = await start(client, await user(), **fields)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "VALIDATION_ERROR")


async def test_reading_does_not_allow_to_train(client: Client, user):
    assert (await start(client, await user("eve", frozenset({"read"})))).status_code == 403


async def test_another_dialects_service_that_is_absent_is_unavailable(client: Client, core: Core, admin):
    assert not core.chat
    answer = await client.post("/v1/chat", headers=admin, json={"message": "hi"})
    assert (answer.status_code, answer.json()["error_code"]) == (503, "SERVICE_UNAVAILABLE")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, None), (0.2, "less than a second"), (59, "59 seconds"), (2700, "45 minutes"), (7300, "2 hours")],
)
def test_durations_are_told_in_words(seconds, words):
    assert in_words(seconds) == words


@pytest.mark.parametrize(("size", "words"), [(7, "7B"), (1_234_567, "1.23MB"), (1_200_000_000, "1.2GB")])
def test_sizes_are_told_in_words(size, words):
    assert size_in_words(size) == words
