"""The bitnet phase from a base model to a verdict, its schedule and loss, and a break in the middle."""

import copy
import json
import math
from pathlib import Path

import pytest
import tiny_training as tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_forge import TINY, forge
from torch.nn import functional as F

from train.bitnet.distillation import Distillation, distillation_loss, lam
from train.bitnet.linear import effective, is_ternary, layers, ternary
from train.bitnet.packing import read_packed
from train.bitnet.quantisation import PACKED
from train.data.packing import IGNORED
from train.evaluate.perplexity import held_out_loss
from train.evaluate.quality import Quality
from train.model.learner import load
from train.model.llama import Llama
from train.phases.bitnet import Bitnet, BitnetConfig
from train.phases.phase import Outcome

TERNARY = {
    "context_length": 64, "batch_size": 2, "max_steps": 16, "lambda_share": 0.5, "mix": {"shakespeare": 0.1},
    "checkpoint_steps": 4, "checkpoint_seconds": 1000, "warmup_steps": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("seed")
    forge(home, [("cognate", TINY)])
    return home / "runs" / "task_tiny" / "0-cognate" / "model"


def phases(seed: Path, **fields):
    first = {"base_models": [str(seed)], "held_out_tokens": 1024}
    return [("bitnet", TERNARY | first | fields)]


@given(st.integers(1, 500), st.floats(0, 1))
def test_lam_rises_from_nothing_to_one_and_stays(steps: int, share: float):
    values = [lam(step, steps, share) for step in range(steps)]
    assert values == sorted(values) and values[0] >= 0 and values[-1] <= 1
    assert all(value == 1 for step, value in enumerate(values) if step >= share * steps)
    if share * steps >= 1:
        assert values[0] == 0


def test_the_loss_is_the_texts_and_the_teachers_in_their_shares():
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    targets = torch.tensor([[1, 2, IGNORED], [0, IGNORED, 4]])
    kept = targets.flatten() != IGNORED
    ours, theirs, right = student.flatten(0, 1)[kept], teacher.flatten(0, 1)[kept], targets.flatten()[kept]
    text = F.cross_entropy(ours, right)
    assert distillation_loss(student, teacher, targets, 1.0, 2.0).item() == pytest.approx(text.item())
    p, q = (theirs / 2).softmax(-1), (ours / 2).softmax(-1)
    gap = 4 * (p * (p / q).log()).sum(-1).mean()
    assert distillation_loss(student, teacher, targets, 0.0, 2.0).item() == pytest.approx(gap.item(), rel=1e-5)
    mixed = distillation_loss(student, teacher, targets, 0.3, 2.0)
    assert mixed.item() == pytest.approx((0.3 * text + 0.7 * gap).item(), rel=1e-5)
    assert distillation_loss(teacher, teacher, targets, 0.0, 1.0).item() == pytest.approx(0, abs=1e-6)


def test_the_objective_moves_the_student_alone_and_sets_lam_by_the_step():
    teacher, student = Llama(tiny.SHAPE), ternary(Llama(tiny.SHAPE))
    objective = Distillation(
        teacher, steps=10, lambda_share=0.4, alpha=0.5, temperature=1.0, precision="fp32", device=torch.device("cpu")
    )
    batch = next(iter(tiny.batches()))
    for step, expected in ((0, 0.0), (2, 0.5), (9, 1.0)):
        objective(student, batch, step).backward()
        assert {layer.lam for _, layer in layers(student)} == {expected}
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_training_wins_back_what_rounding_loses():
    config = {"max_steps": 120, "precision": "fp32"}
    first = tiny.loop(config=config)
    first.run()
    parent, student, rows = first.model, ternary(copy.deepcopy(first.model)), [next(iter(tiny.batches(seed=1)))]
    objective = Distillation(
        parent, steps=120, lambda_share=0.4, alpha=0.3, temperature=1.0, precision="fp32", device=torch.device("cpu")
    )
    (before, _), (rounded, _) = held_out_loss(parent, rows, "fp32"), held_out_loss(student, rows, "fp32")
    tiny.loop(student, objective=objective, config=config).run()
    after, _ = held_out_loss(student, rows, "fp32")
    assert before < after < before + (rounded - before) / 2


def test_the_phase_leaves_a_ternary_model_measured_packed_and_judged(tmp_path: Path, seed: Path):
    (outcome,) = forge(tmp_path, phases(seed))
    folder = tmp_path / "runs" / "task_tiny" / "0-bitnet"
    made, metrics = load(folder / "model"), outcome.metrics
    assert is_ternary(made.model)
    read, stored = read_packed(folder / PACKED), load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(read[name], stored[name]) for name in stored) and read.keys() == stored.keys()
    assert metrics["packed_bytes"] == (folder / PACKED).stat().st_size
    assert metrics["size_ratio"] == (seed / "model.safetensors").stat().st_size / metrics["packed_bytes"] > 2
    assert 1.6 <= metrics["bits_per_ternary_weight"] < 1.61 < metrics["bits_per_weight"] < 32
    zeros = torch.cat([weight.flatten() for weight in effective(made.model).values()]) == 0
    assert metrics["zeros_share"] == pytest.approx(zeros.float().mean().item()) and 0.2 < metrics["zeros_share"] < 0.5
    assert metrics["held_out_loss_before"] == pytest.approx(outcome.before.loss, abs=1e-3)
    assert metrics["held_out_loss"] == pytest.approx(outcome.after.loss, abs=0.02)
    curve = json.loads((folder / "curve.json").read_text())
    assert metrics["held_out_loss_rounded"] == curve["held_out"][0][1] != metrics["held_out_loss"]
    assert metrics["perplexity_ratio"] == pytest.approx(math.exp(outcome.after.loss - outcome.before.loss), rel=1e-3)
    assert metrics["activations_cost"] != 0


def test_an_interrupted_phase_ends_as_an_unbroken_one(tmp_path: Path, seed: Path):
    class Killed(Exception):
        pass

    def die(progress):
        if progress.step == 11:  # lam is 1 since step 8, of which the newest checkpoint is
            raise Killed

    (unbroken,) = forge(tmp_path / "one", phases(seed))
    with pytest.raises(Killed):
        forge(tmp_path / "two", phases(seed), report=die)
    notes = []
    (resumed,) = forge(tmp_path / "two", phases(seed), note=lambda message, **fields: notes.append((message, fields)))
    assert ("resumed", {"step": 8}) in notes
    assert resumed.digest == unbroken.digest and resumed.after == unbroken.after
    rounded = "held_out_loss_rounded"
    assert resumed.metrics[rounded] == unbroken.metrics[rounded]


def test_later_training_of_a_ternary_model_stays_ternary(tmp_path: Path, seed: Path):
    more = TINY | {"max_steps": 80, "learning_rate": 1e-3}
    for name in ("vocab_size", "parameter_budget", "target_architecture"):
        more.pop(name)
    forge(tmp_path / "first", phases(seed, max_steps=4))
    base = tmp_path / "first" / "runs" / "task_tiny" / "0-bitnet" / "model"
    forge(tmp_path / "more", [("cognate", more | {"base_models": [str(base)]})])
    folder = tmp_path / "more" / "runs" / "task_tiny" / "0-cognate" / "model"
    stored, earlier = load_file(folder / "model.safetensors"), load_file(base / "model.safetensors")
    assert is_ternary(load(folder).model)
    for name in effective(load(folder).model):
        assert len(stored[name].unique()) <= 3
    assert any(not torch.equal(stored[name], earlier[name]) for name in stored)


@pytest.mark.parametrize(
    ("after", "packed", "outcome"), [(2.0, 5.0, "pass"), (2.09, 5.0, "pass"), (2.2, 5.0, "keep"), (2.0, 11.0, "keep")]
)
def test_the_gate_wants_little_loss_and_less_space(after: float, packed: float, outcome: str):
    def quality(loss: float) -> Quality:
        return Quality(loss=loss, accuracy=0.5, bits_per_byte=1, tokens=100)

    metrics = {"held_out_loss_rounded": 3.0, "packed_bytes": packed, "weights_bytes_before": 10.0}
    verdict = Bitnet(BitnetConfig.model_validate({"tolerance": 0.1})).gate(quality(2.0), quality(after), metrics)
    assert verdict.outcome is Outcome(outcome)
    assert f"2.000 -> {after:.3f}" in verdict.reason and "3.000" in verdict.reason
