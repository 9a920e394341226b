"""A search over a phase's parameters on a real Ray: trials are the run's children, the best one is its model."""

from pathlib import Path

import pytest
from eventually import eventually
from jobs import Processes
from tiny_forge import TINY

from cluster.clock import utc_now
from cluster.identity.model import SYSTEM
from cluster.settings import Settings
from cluster.store import Store
from train.models import Models
from train.runs import RunState
from train.service import Forge
from train.trials import TrialState

RATES = {"low": 1e-4, "high": 1e-2, "log": True}


@pytest.mark.timeout(240)
async def test_a_phase_that_searches_has_its_candidates_as_trials(store: Store, tmp_path: Path):
    processes = Processes()
    forge = Forge(store, processes, Settings(home=tmp_path, redis_url=store.url), utc_now, Models(store, utc_now))
    family = TINY | {"max_steps": 24, "siblings": 3, "siblings_from": 0.5, "threads": 1}
    merging = {"population": 4, "generations": 1, "fitness_tokens": 256, "fitness_questions": 2, "context_length": 64}
    run = await forge.start(SYSTEM, [("cognate", family), ("evomerge", merging)])

    async def over() -> bool:
        return (await forge.get(SYSTEM, run.run_id)).state not in (RunState.PENDING, RunState.RUNNING)

    try:
        await eventually(over, within=200)
    finally:
        await processes.stop("all")
    ended = await forge.get(SYSTEM, run.run_id)
    assert (ended.state, ended.error) == (RunState.COMPLETED, "")
    trials = (await forge.trials(SYSTEM, run.run_id)).items
    assert len(trials) == ended.stages[1].metrics["merges"]
    assert {trial.state for trial in trials} == {TrialState.COMPLETED}
    assert all(trial.metrics["loss"] > 0 for trial in trials)


@pytest.mark.timeout(240)
async def test_the_best_of_several_trials_is_kept_and_all_are_told(store: Store, tmp_path: Path):
    processes = Processes()
    forge = Forge(store, processes, Settings(home=tmp_path, redis_url=store.url), utc_now, Models(store, utc_now))
    search = {"space": {"learning_rate": RATES}, "trials": 4, "at_once": 2}
    run = await forge.start(SYSTEM, [("cognate", TINY | {"threads": 1, "search": search})])

    async def over() -> bool:
        return (await forge.get(SYSTEM, run.run_id)).state not in (RunState.PENDING, RunState.RUNNING)

    try:
        await eventually(over, within=200)
    finally:
        await processes.stop("all")
    ended = await forge.get(SYSTEM, run.run_id)
    assert (ended.state, ended.error) == (RunState.COMPLETED, "")
    trials = (await forge.trials(SYSTEM, run.run_id)).items
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert {trial.state for trial in trials} <= {TrialState.COMPLETED, TrialState.STOPPED}
    assert all(1e-4 <= trial.candidate["learning_rate"] <= 1e-2 for trial in trials)
    losses = [t.metrics["held_out_loss"] for t in trials if t.state is TrialState.COMPLETED]
    assert ended.stages[0].metrics["held_out_loss"] == pytest.approx(min(losses))
    events = [event for event in await store.events(limit=10_000) if event.kind == "training.trial"]
    assert {event.data["number"] for event in events} == {0, 1, 2, 3}
    assert (tmp_path / "models" / run.model_id / "model.safetensors").exists()
