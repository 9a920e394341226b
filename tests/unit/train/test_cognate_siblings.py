"""Siblings: one trunk, then each on its own mix; broken off anywhere they end as if they had not been."""

import json
from pathlib import Path

import pytest
from tiny_forge import TINY, forge

from train.phases import catalogue
from train.stage import standing

FAMILY = TINY | {
    "max_steps": 24, "siblings": 3, "siblings_from": 0.5, "batch_size": 1, "held_out_tokens": 256,
    "checkpoint_steps": 5,
    "specialities": [{"name": "talk", "mix": {"dialogue": 4.0}}, {"name": "numbers", "mix": {"sums": 4.0}}],
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("whole")
    steps: list[tuple[int, int]] = []
    forge(home, [("cognate", FAMILY)], report=lambda progress: steps.append((progress.step, progress.total_steps)))
    assert [step for step, _ in steps] == list(range(1, 49))  # 12 of the trunk, 3 times 12
    assert {total for _, total in steps} == {48} == {catalogue.phase("cognate", FAMILY).total_steps}
    return home / "runs/task_tiny/0-cognate"


def test_there_are_as_many_folders_as_siblings_and_all_differ(whole: Path):
    folders = [whole / "model", whole / "siblings/0", whole / "siblings/1"]
    weights = {(folder / "model.safetensors").read_bytes() for folder in folders}
    assert len(weights) == 3
    assert {(folder / "tokenizer.json").read_bytes() for folder in folders} == {
        (whole / "model/tokenizer.json").read_bytes()
    }
    assert sorted(path.name for path in (whole / "siblings").iterdir()) == ["0", "1", "trunk"]


def test_what_comes_next_is_given_the_siblings(whole: Path):
    from tiny_forge import run_of

    run = run_of([("cognate", FAMILY)])
    here = standing(whole.parents[2], run, 1, ())
    assert here.model == whole / "model"
    assert here.siblings == (whole / "siblings/0", whole / "siblings/1")


def test_the_metrics_tell_every_sibling_by_itself(whole: Path):
    metrics = json.loads((whole / "outcome.json").read_text())["metrics"]
    for number in range(3):
        assert metrics[f"sibling_{number}_loss"] < metrics["held_out_loss_before"]
        assert metrics[f"sibling_{number}_speciality_loss"] < metrics[f"sibling_{number}_speciality_loss_before"]
    assert metrics["sibling_0_loss"] == metrics["held_out_loss"]
    assert metrics["tokens"] == 48 * 64


def test_a_siblings_curve_goes_on_where_the_trunk_was(whole: Path):
    curves = [json.loads((whole / f"{name}.curve.json").read_text()) for name in ("trunk", "sibling-0", "sibling-1")]
    trunk, first, second = (curve["steps"] for curve in curves)
    assert len(trunk) == 12
    assert first[:12] == trunk == second[:12]
    assert first[12:] != second[12:]
    rates = [rate for _, _, rate, _ in first]
    assert rates[2:] == sorted(rates[2:], reverse=True)  # one schedule: no second warm-up


@pytest.mark.parametrize("dies_at", [7, 12, 30])
def test_a_family_that_is_broken_off_ends_as_the_unbroken_one(whole: Path, tmp_path: Path, dies_at: int):
    class Killed(Exception):
        pass

    def report(progress) -> None:
        if progress.step == dies_at:
            raise Killed

    with pytest.raises(Killed):
        forge(tmp_path, [("cognate", FAMILY)], report=report)
    steps: list[int] = []
    forge(tmp_path, [("cognate", FAMILY)], report=lambda progress: steps.append(progress.step))
    assert steps[0] > dies_at - 5
    for name in ("model", "siblings/0", "siblings/1"):
        mine, theirs = (where / name / "model.safetensors" for where in (tmp_path / "runs/task_tiny/0-cognate", whole))
        assert mine.read_bytes() == theirs.read_bytes()
