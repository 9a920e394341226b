"""Checkpoints after a kill: the newest whole one counts."""

from pathlib import Path

import pytest

from train.manifest import Checkpoints, folder_digest


def write(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(step, lambda file, step=step: file.write(f"state {step}".encode() * 50))


def test_the_newest_checkpoint_is_found_and_two_are_kept(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest() is None
    write(checkpoints, 10, 20, 30)
    found = checkpoints.newest()
    assert found is not None and found[0].step == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000020.json", "step-00000020.pt", "step-00000030.json", "step-00000030.pt"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "step-00000020.pt").write_bytes(b"state"),  # truncated
        lambda folder: (folder / "step-00000020.pt").unlink(),
        lambda folder: (folder / "step-00000020.pt").write_bytes(b"x" * (folder / "step-00000020.pt").stat().st_size),
        lambda folder: (folder / "step-00000020.json").write_text('{"step": 20, "fi'),
        lambda folder: (folder / "step-00000020.json").unlink(),  # killed before the manifest
    ],
)
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path, damage):
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 10, 20)
    damage(tmp_path)
    found = checkpoints.newest()
    assert found is not None and found[0].step == 10


def test_a_folders_digest_follows_names_and_contents(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"123")
    assert folder_digest(tmp_path / "a") == folder_digest(tmp_path / "b")
    (tmp_path / "b" / "weights").write_bytes(b"124")
    assert folder_digest(tmp_path / "a") != folder_digest(tmp_path / "b")
