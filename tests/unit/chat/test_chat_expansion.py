import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cluster.errors import InsufficientResources
from serve_apps.chat.engine import ModelRef
from serve_apps.chat.expansion import servable
from train.causes import Failed
from train.compression import artifact
from train.compression.artifact import ARTIFACT, Entry, write
from train.compression.codecs import encode


@pytest.fixture
def model(tmp_path: Path) -> ModelRef:
    """A compressed folder as the forge leaves it; vLLM is not asked here whether it likes the model."""
    folder = tmp_path / "models" / "model_1"
    folder.mkdir(parents=True)
    with (folder / ARTIFACT).open("wb") as file:
        write(file, [Entry("w", (64, 64), "float32", encode("kquant", torch.ones(64, 64).tril(), {"bits": 4}))])
    (folder / "config.json").write_text("{}")
    return ModelRef("model_1", "one", str(folder), "d" * 64, size_bytes=3000)


def test_a_compressed_model_is_served_from_its_expansion(model: ModelRef, tmp_path: Path):
    found = servable(model, tmp_path)
    assert Path(found.path) == tmp_path / "cache" / "models" / model.digest
    assert found.key == model.key and found.size_bytes > 64 * 64 * 4
    assert load_file(Path(found.path) / "model.safetensors")["w"].sum() == pytest.approx(64 * 65 / 2, rel=0.01)
    assert (Path(found.path) / "config.json").exists() and not (Path(found.path) / ARTIFACT).exists()


def test_it_is_expanded_once(model: ModelRef, tmp_path: Path):
    weights = Path(servable(model, tmp_path).path) / "model.safetensors"
    before = weights.stat().st_ino
    servable(model, tmp_path)
    assert weights.stat().st_ino == before


def test_an_expansion_that_is_not_whole_is_made_again(model: ModelRef, tmp_path: Path):
    weights = Path(servable(model, tmp_path).path) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"\x01")
    servable(model, tmp_path)
    assert weights.read_bytes() == whole
    weights.unlink()
    servable(model, tmp_path)
    assert weights.read_bytes() == whole


def test_a_plain_model_is_served_as_it_is(tmp_path: Path):
    plain = ModelRef("model_2", "two", str(tmp_path))
    assert servable(plain, tmp_path) is plain
    assert not (tmp_path / "cache").exists()


def test_a_damaged_artifact_leaves_nothing_behind(model: ModelRef, tmp_path: Path):
    path = Path(model.path) / ARTIFACT
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Failed, match="damaged"):
        servable(model, tmp_path)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_a_full_disk_is_said_plainly(model: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(artifact, "save_file", full)
        with pytest.raises(InsufficientResources, match="disk is full"):
            servable(model, tmp_path)
    assert list((tmp_path / "cache" / "models").iterdir()) == []
    assert json.loads((Path(servable(model, tmp_path).path) / "expanded.json").read_text())["weights"]
