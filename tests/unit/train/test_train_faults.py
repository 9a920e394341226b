"""What a training cannot survive ends it with the cause, and leaves the model before as it was."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_forge import TINY, forge, run_of

from cluster.errors import Conflict, Invalid, VillageError
from train.causes import Cause, Failed, cause_of
from train.manifest import folder_digest
from train.phases.phase import stage_folder
from train.stage import ended, standing

SHORT = TINY | {"max_steps": 6}


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (Failed("x", Cause.DATA), Cause.DATA),
        (OSError(28, "No space left on device"), Cause.DISK_FULL),
        (MemoryError(), Cause.OUT_OF_MEMORY),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), Cause.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), Cause.OUT_OF_MEMORY),
        (Invalid("no"), Cause.OTHER),
        (RuntimeError("connection reset"), None),
        (OSError(5, "Input/output error"), None),
    ],
)
def test_an_error_has_a_cause_only_where_repeating_would_repeat_it(error, cause):
    assert cause_of(error) is cause


def test_the_cause_is_found_below_what_others_made_of_it():
    try:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise RuntimeError("[enforce fail at inline_container.cc]") from error
    except RuntimeError as error:
        assert cause_of(error) is Cause.DISK_FULL
    assert isinstance(Failed("x", Cause.GATE), VillageError) and not isinstance(Failed("x"), Conflict)


@pytest.mark.parametrize(
    "parameters",
    [{"learning_rate": 1.0, "max_steps": 60, "clip_norm": 1e38, "warmup_steps": 0, "precision": "fp32",
      "weight_decay": 0.0, "grokfast_lamb": 10.0}],
)  # fmt: skip
def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, parameters):
    with pytest.raises(Failed) as failed:
        forge(tmp_path, [("cognate", SHORT | parameters)])
    assert failed.value.details["cause"] in (Cause.NOT_FINITE, Cause.EXPLODING, Cause.GATE)
    assert not (tmp_path / "runs" / "task_tiny" / "0-cognate" / "model").exists() or (
        failed.value.details["cause"] == Cause.GATE
    )


def test_a_base_model_that_is_no_model_ends_the_run_and_stays_as_it_was(tmp_path: Path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"aivillage": true, "hidden_size": 4}')
    (base / "model.safetensors").write_bytes(b"cut off")
    before = folder_digest(base)
    with pytest.raises(Failed) as failed:
        forge(tmp_path, [("cognate", SHORT | {"base_models": [str(base)]})])
    assert failed.value.details["cause"] == Cause.BASE_MODEL
    assert folder_digest(base) == before


def test_a_stage_that_another_changed_behind_its_back_is_not_gone_on_from(tmp_path: Path):
    phases = [("cognate", SHORT)]
    forge(tmp_path, phases)
    run = run_of(phases)
    weights = stage_folder(tmp_path, run, 0) / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(Failed) as failed:
        standing(tmp_path, run, 1, ())
    assert failed.value.details["cause"] == Cause.DAMAGED


def test_an_outcome_that_was_cut_off_is_none(tmp_path: Path):
    phases = [("cognate", SHORT)]
    first = forge(tmp_path, phases)
    run = run_of(phases)
    path = stage_folder(tmp_path, run, 0) / "outcome.json"
    path.write_bytes(path.read_bytes()[:40])
    assert ended(tmp_path, run, 0) is None
    again = forge(tmp_path, phases)
    assert again[0].digest == first[0].digest


IN_LITTLE = """
import resource, sys
from pathlib import Path
from tiny_forge import TINY, forge
from train.causes import cause_of
import train.pretraining
limit = int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    forge(Path(sys.argv[1]), [("cognate", TINY | eval(sys.argv[3]))])
except BaseException as error:
    print("CAUSE", cause_of(error))
"""


def little(home: Path, memory: int, **parameters) -> str:
    """The cause that a training in a process of its own ended by."""
    environment = os.environ | {"PYTHONPATH": "tests:.", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", IN_LITTLE, str(home), str(memory), repr(parameters)], env=environment,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return next((line for line in done.stdout.splitlines() if line.startswith("CAUSE")), done.stdout + done.stderr)


def test_a_model_that_does_not_fit_into_memory_says_so(tmp_path: Path):
    assert resource.getrlimit(resource.RLIMIT_AS)
    limit = 12 * 1024**3
    said = little(tmp_path, limit, batch_size=4096, context_length=1024, max_steps=1, held_out_tokens=256)
    assert said == "CAUSE out_of_memory"


@pytest.fixture
def small_disk(tmp_path: Path):
    """A disk of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_says_so(small_disk: Path):
    assert little(small_disk, 0, max_steps=4) == "CAUSE disk_full"
    assert not (small_disk / "runs" / "task_tiny" / "0-cognate" / "model").exists()
