"""All eight phases one after the other, each on what the one before left, with gates that let everything through.

What a gate would stop at this size is not the question here; that a model which thinks, is ternary and calls tools is
read, trained and written by every later phase is.
"""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from tiny_forge import TINY, forge

from train.evaluate.quality import Quality
from train.model.learner import load
from train.phases import catalogue
from train.phases.phase import Outcome, Verdict

SHORT = {"context_length": 64, "batch_size": 2, "threads": 1}
PHASES = [
    ("cognate", TINY | {"max_steps": 24, "siblings": 3, "siblings_from": 0.5, "batch_size": 1, "context_length": 256}),
    ("evomerge", {
        "population": 4, "generations": 1, "fitness_tokens": 256, "fitness_questions": 2, "answer_tokens": 4,
        "context_length": 64,
    }),
    ("quietstar", SHORT | {
        "max_steps": 4, "reinforce_from": 0.5, "positions": 2, "thoughts": 2, "thought_tokens": 4, "ahead": 4,
        "scratchpads": 20, "largest_operand": 12, "exam_questions": 10, "replayed": 6, "mix": {},
    }),
    ("bitnet", SHORT | {"max_steps": 4}),
    ("training", SHORT | {
        "max_steps": 4, "round_steps": 2, "asked": 2, "thought_tokens": 4, "exam_tasks": 1, "dreams_drawn": 2,
        "dream_tokens": 8, "beginning": 2, "families": ["length", "capitals"],
    }),
    ("tool_baking", SHORT | {
        "max_steps": 4, "teacher_steps": 4, "teacher_tasks": 20, "copying_steps": 2,
        "trajectories": 8, "measured_tasks": 6,
        "max_tokens": 16, "replay": 6, "mix": {}, "context_length": 256,
    }),
    ("adas", SHORT | {
        "max_steps": 2, "mixture_rounds": 1, "mixture_population": 4, "validation_tokens": 64, "family_questions": 4,
        "budget_trials": 4, "rungs": [2, 4], "examples": 4, "max_tokens": 4, "thought_tokens": 4,
        "judge_questions": 8, "least_known": 0.0,
    }),
    ("final_compression", {
        "codecs": ["kquant"], "calibration_tokens": 256, "measured_tokens": 256, "measured": 1, "timed_tokens": 4,
        "tolerance_nats": 0.5,
    }),
]  # fmt: skip


@pytest.mark.timeout(300)
def test_every_phase_takes_what_the_one_before_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def let_through(self, before: Quality, after: Quality, metrics: dict[str, float]) -> Verdict:
        return Verdict(outcome=Outcome.PASS, reason="let through")

    for entry in catalogue.PHASES:
        monkeypatch.setattr(entry.load(), "gate", let_through)
    outcomes = forge(tmp_path, PHASES)
    assert len(outcomes) == 8
    for before, after in pairwise(outcomes):
        assert after.before == before.after, "each begins with what the one before made, as it was measured"
        assert after.after.tokens == before.after.tokens
    final = tmp_path / "runs" / "task_tiny" / "7-final_compression" / "model"
    learner = load(final)
    assert learner.tokenizer.thinks
    assert learner.replay
    assert json.loads((final / "agent.json").read_text())
    assert not (final / "model.safetensors").exists() and (final / "weights.village").exists()
