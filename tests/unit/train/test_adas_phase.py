"""The adas phase from a base model to a verdict, and a break anywhere in it."""

import json
from pathlib import Path

import pytest
import torch
from tiny_forge import TINY, forge

from cluster.errors import Invalid
from train.adas.design import DEFAULT, read_agent
from train.adas.experts import Composer, Experts
from train.evaluate.quality import Quality
from train.model.learner import load
from train.phases.adas import Adas, AdasConfig
from train.phases.phase import Outcome

SMALL = {
    "max_steps": 3, "context_length": 64, "batch_size": 2, "checkpoint_steps": 1, "checkpoint_seconds": 1000,
    "experts": ["arithmetic", "text"], "families": ["arithmetic", "facts"], "level": 0, "validation_tokens": 256,
    "mixture_rounds": 1, "mixture_population": 4, "budget_trials": 6, "budget_seconds": 1000, "rungs": [3, 6],
    "max_tokens": 4, "judge_questions": 12, "family_questions": 12, "examples": 4,
    "held_out_tokens": 512, "loss_tolerance": 1.0,
}  # fmt: skip


class Killed(Exception):
    """As a kill would."""


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("seed")
    forge(home, [("cognate", TINY)])
    return home / "runs" / "task_tiny" / "0-cognate" / "model"


def phases(seed: Path, **fields):
    return [("adas", SMALL | {"base_models": [str(seed)]} | fields)]


@pytest.fixture(scope="module")
def whole(seed: Path, tmp_path_factory: pytest.TempPathFactory):
    home, steps = tmp_path_factory.mktemp("whole"), []
    [outcome] = forge(home, phases(seed), report=lambda p: steps.append((p.step, p.total_steps)))
    return home / "runs" / "task_tiny" / "0-adas", outcome, steps


TIMES = ("seconds", "memory", "bytes")


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not any(time in name for time in TIMES)}


def test_the_phase_measures_all_that_it_is_about(whole):
    folder, outcome, steps = whole
    metrics = outcome.metrics
    assert steps == [(number, 12) for number in range(1, 13)]
    assert metrics["trials"] == 6 and metrics["designs"] >= 3 and metrics["judge_questions"] == 12
    assert 0 <= metrics["success_before_low"] <= metrics["success_before"] <= metrics["success_before_high"] <= 1
    assert metrics["cost_before"] > 0 and metrics["cost_after"] > 0
    assert {"expert_arithmetic_on_text_loss", "expert_text_on_facts_success", "dispatcher_accuracy"} < set(metrics)
    assert metrics["dispatcher_accuracy"] > 0.5
    width, feed_forward = 128, 352
    assert metrics["expert_parameters"] == 4 * 7 * min(width, feed_forward)
    archive = [json.loads(line) for line in (folder / "archive.jsonl").read_text().splitlines()]
    assert len(archive) >= metrics["designs"]
    assert outcome.verdict.outcome in (Outcome.PASS, Outcome.KEEP)


def test_the_folder_has_the_agent_and_the_experts_beside_weights_that_fit_them(whole, seed):
    folder, outcome, _ = whole
    agent = read_agent(folder / "model")
    assert not agent.design.experts and not agent.design.dispatch
    assert agent.measured is not None and agent.measured.questions == 12
    if outcome.metrics["success_gain"] <= outcome.metrics["success_gain_error"]:
        assert agent.design == DEFAULT.model_copy(update={"max_tokens": 4}) and not agent.merged
    learner, experts = load(folder / "model"), Experts.read(folder / "model" / "experts.svf")
    base = Composer(load(seed), Experts.read(folder / "experts.svf"))
    with base.using(agent.merged):
        merged = base.learner.model.state_dict()
        assert all(torch.allclose(merged[n], w, atol=1e-6) for n, w in learner.model.state_dict().items())
    with base.using({"text": 1.0}), Composer(learner, experts).using({"text": 1.0}):
        alone = base.learner.model.state_dict()
        assert all(torch.allclose(alone[n], w, atol=1e-3) for n, w in learner.model.state_dict().items())


def test_breaks_anywhere_change_nothing(seed, whole, tmp_path):
    """In the first expert, in the second, at the first and at the last trial."""
    to_come = [2, 5, 7, 11]

    def report(progress):
        if progress.step in to_come:
            to_come.remove(progress.step)
            raise Killed

    for _ in list(to_come):
        with pytest.raises(Killed):
            forge(tmp_path, phases(seed), report=report)
    [outcome] = forge(tmp_path, phases(seed), report=report)
    assert not to_come
    assert untimed(outcome.metrics) == pytest.approx(untimed(whole[1].metrics), abs=1e-5)
    kept = [read_agent(folder / "model") for folder in (tmp_path / "runs" / "task_tiny" / "0-adas", whole[0])]
    assert kept[0].design == kept[1].design and kept[0].merged == kept[1].merged


def test_reward_trains_experts_too_and_a_model_may_be_asked_for_designs(seed, tmp_path):
    fields = {"method": "reinforce", "experts": ["facts"], "prompts": 2, "answers": 2, "proposer": "model"}
    [outcome] = forge(tmp_path, phases(seed, **fields))
    assert outcome.metrics["model_proposals"] >= 2 and 0 <= outcome.metrics["model_proposals_valid"] <= 1
    curve = json.loads((tmp_path / "runs" / "task_tiny" / "0-adas" / "expert-facts.curve.json").read_text())
    assert len(curve["steps"]) == 3


def test_without_experts_designs_alone_are_searched(seed, tmp_path):
    [outcome] = forge(tmp_path, phases(seed, experts=[], budget_trials=2))
    assert outcome.metrics["merged_weight"] == 0 and "dispatcher_accuracy" not in outcome.metrics
    assert outcome.before.loss == pytest.approx(outcome.after.loss, abs=1e-6)


QUALITY = Quality(loss=2.0, accuracy=0.5, bits_per_byte=1.0, tokens=100)
MEASURED = {"success_before": 0.4, "success_after": 0.5, "success_gain": 0.1, "success_gain_error": 0.03,
            "cost_before": 9.0, "cost_after": 30.0}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "loss", "outcome"),
    [
        ({}, 2.0, Outcome.PASS), ({}, 2.02, Outcome.PASS), ({}, 2.2, Outcome.KEEP),
        ({"success_gain": 0.02}, 2.0, Outcome.KEEP),
        ({"success_gain": 0.0, "success_gain_error": 0.0}, 2.0, Outcome.KEEP),
    ],
)  # fmt: skip
def test_the_gate_wants_more_right_answers_and_no_worse_text(fields, loss, outcome):
    after = QUALITY.model_copy(update={"loss": loss})
    verdict = Adas(AdasConfig.model_validate({"loss_tolerance": 0.03})).gate(QUALITY, after, MEASURED | fields)
    assert verdict.outcome is outcome
    assert "0.400 -> 0.500" in verdict.reason


@pytest.mark.parametrize("fields", [{"rungs": [8, 8]}, {"rungs": []}, {"families": []}, {"rungs": [0, 4]}])
def test_a_configuration_that_cannot_run_is_refused(fields):
    with pytest.raises(Invalid):
        Adas(AdasConfig.model_validate(fields)).check()
