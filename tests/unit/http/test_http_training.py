"""Runs of several phases over HTTP: starting, listing, trials, curves, resuming; what cannot run is refused."""

import json

import pytest
from http_harness import Client
from test_http_models import core, finished, start  # noqa: F401 - the fixture

from cluster.clock import utc_now
from serve_apps.core import Core
from train.phases.phase import stage_folder
from train.runs import Run, RunEvent, advance
from train.trials import Children, TrialState

TWO = [{"phase_name": "cognate", "parameters": {"siblings": 2}}, {"phase_name": "bitnet"}]


async def posted(client: Client, headers, **body):
    return await client.post("/v1/models/train", headers=headers, json=body)


async def test_a_run_of_several_phases_says_so_phase_by_phase(client: Client, core: Core, user):  # noqa: F811
    ann = await user()
    answer = await posted(client, ann, phases=TWO, parameters={"seed": 7, "siblings": 3}, model_name="two")
    assert answer.status_code == 200, answer.text
    assert answer.json()["message"] == "Training started for 2 phases"
    task = answer.json()["data"]["task_id"]
    status = (await client.get(f"/v1/models/train/{task}/status", headers=ann)).json()["data"]
    assert [phase["phase"] for phase in status["phases"]] == ["cognate", "bitnet"]
    assert (status["progress"]["phases_completed"], status["progress"]["total_phases"]) == (0, 2)
    run = await core.store.get(Run, task)
    assert [stage.config["seed"] for stage in run.stages] == [7, 7]
    assert run.stages[0].config["siblings"] == 3
    listed = (await client.get("/v1/models/train", headers=ann)).json()["data"]
    assert [each["task_id"] for each in listed["runs"]] == [task] and listed["total_count"] == 1
    assert (await client.get("/v1/models/train?status=failed", headers=ann)).json()["data"]["total_count"] == 0


async def test_a_pipeline_is_named_like_a_phase(client: Client, core: Core, user):  # noqa: F811
    answer = await posted(client, await user(), phase_name="seedling", parameters={"seed": 3})
    assert answer.status_code == 200, answer.text
    run = await core.store.get(Run, answer.json()["data"]["task_id"])
    assert len(run.stages) == 8 and {stage.config["seed"] for stage in run.stages} == {3}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "phase_name"),
        ({"phase_name": "cognate", "phases": TWO}, "phase_name"),
        ({"phases": TWO, "parameters": {"no_such": 1}}, "no_such"),
        ({"phases": [*TWO, {"phase_name": "bitnet", "parameters": {"base_models": ["x/y"]}}]}, "phases"),
        ({"phase_name": "nine"}, "phase_name"),
        ({"phase_name": "cognate", "parameters": {"scale": "tpu"}}, "scale"),
        ({"phase_name": "cognate", "parameters": {"search": {"space": {"colour": {"choices": [1]}}}}},
         "search.space.colour"),
        ({"phase_name": "cognate", "parameters": {"search": {"space": {"learning_rate": {"low": 0.1, "high": 9.0}}}}},
         "search.space.learning_rate"),
        ({"phase_name": "evomerge", "parameters": {"search": {"space": {"seed": {"choices": [1]}}}}}, "search"),
    ],
)  # fmt: skip
async def test_what_cannot_run_is_refused_and_names_the_field(client: Client, core: Core, user, body, field):  # noqa: F811
    answer = await posted(client, await user(), **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["details"]["field"] == field


async def test_files_of_the_machine_are_for_admins(client: Client, core: Core, user):  # noqa: F811
    ann = await user()
    for parameters in ({"datasets": ["/etc/passwd"]}, {"base_models": ["/etc"]}):
        answer = await posted(client, ann, phase_name="cognate", parameters=parameters)
        assert answer.status_code == 403, answer.text


async def test_a_model_that_is_not_there_yet_is_no_base(client: Client, core: Core, user):  # noqa: F811
    ann = await user()
    model = (await start(client, ann)).json()["data"]["model_id"]
    answer = await posted(client, ann, phase_name="bitnet", parameters={"base_models": [model]})
    assert answer.status_code == 503, answer.text


async def test_trials_and_curves_of_a_run_are_its_owners(client: Client, core: Core, user):  # noqa: F811
    ann, bob = await user("ann"), await user("bob")
    task = (await start(client, ann)).json()["data"]["task_id"]
    run = await core.store.get(Run, task)
    record_trials(core, run)
    trials = (await client.get(f"/v1/models/train/{task}/trials?limit=1&offset=1", headers=ann)).json()["data"]
    assert (trials["total_count"], trials["trials"][0]["candidate"]) == (2, {"learning_rate": 0.002})
    folder = stage_folder(core.settings.home, run, 0)
    folder.mkdir(parents=True)
    (folder / "curve.json").write_text(json.dumps({"steps": [[1, 7.5, 0.1, 2.0]], "held_out": [[0, 7.6, 0.0]]}))
    curves = (await client.get(f"/v1/models/train/{task}/curve", headers=ann)).json()["data"]["curves"]
    assert (curves[0]["phase"], curves[0]["steps"]) == ("cognate", [[1, 7.5, 0.1, 2.0]])
    for what in ("trials", "curve", "logs", "status"):
        assert (await client.get(f"/v1/models/train/{task}/{what}", headers=bob)).status_code == 404


def record_trials(core: Core, run: Run) -> None:  # noqa: F811
    """As a search's job does: from a process, and so a loop, of its own."""
    import threading

    def record() -> None:
        children = Children(type(core.store)(core.store.url), run, 0, utc_now)
        for number, rate in enumerate((0.001, 0.002)):
            children.told(number, {"learning_rate": rate}, TrialState.RUNNING)
            children.told(number, {"learning_rate": rate}, TrialState.COMPLETED, step=5, metrics={"loss": 2.0})

    thread = threading.Thread(target=record)
    thread.start()
    thread.join()


async def test_a_failed_run_says_why_and_can_be_resumed(client: Client, core: Core, user):  # noqa: F811
    ann = await user()
    data = (await start(client, ann)).json()["data"]
    task, model = data["task_id"], data["model_id"]
    why = {"error": "the loss is nan at step 7", "cause": "loss_not_finite"}
    failed = await core.store.change(Run, task, lambda run: advance(run, RunEvent.FAIL, utc_now(), **why))
    await core.forge.registry.give_up(failed)
    status = (await client.get(f"/v1/models/train/{task}/status", headers=ann)).json()["data"]
    assert (status["error_code"], status["cause"]) == ("MODEL_TRAINING_FAILED", "loss_not_finite")
    download = await client.get(f"/v1/models/{model}/download", headers=ann)
    assert download.json()["error_code"] == "MODEL_TRAINING_FAILED" and "nan at step 7" in download.text
    resumed = (await client.post(f"/v1/models/train/{task}/resume", headers=ann)).json()["data"]
    assert (resumed["status"], resumed["attempt"], resumed["error"]) == ("queued", 2, "")
    assert (await client.get(f"/v1/models/{model}", headers=ann)).json()["data"]["status"] == "training"
    assert (await client.post(f"/v1/models/train/{task}/resume", headers=ann)).status_code == 409


async def test_every_phase_tells_its_parameters_and_their_defaults_here(client: Client, core: Core, user):  # noqa: F811
    found = (await client.get("/v1/models/train/phases", headers=await user())).json()["data"]
    assert len(found["phases"]) == 8 and len(found["pipelines"]["seedling"]) == 8
    for phase in found["phases"]:
        assert phase["parameters"]["properties"]["seed"]["default"] == 42
        assert phase["paper"].startswith("arXiv:")
