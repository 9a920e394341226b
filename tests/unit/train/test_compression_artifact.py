import io
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from train.causes import Cause, Failed
from train.compression.artifact import ARTIFACT, Entry, expand, read, read_notes, tensors, write
from train.compression.codecs import decode, encode


def entries() -> list[Entry]:
    weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(0)) * 0.1
    return [
        Entry("a.weight", (24, 32), "float32", encode("kquant", weight, {"bits": 4})),
        Entry("b.weight", (24, 32), "bfloat16", encode("gptq", weight, {"step": 0.5})),
        Entry("norm", (32,), "float32", encode("cast", torch.ones(32), {"dtype": "float16"})),
        Entry("steps", (2,), "int64", encode("cast", torch.tensor([3, 2**40]), {"dtype": "int64"})),
    ]


def written() -> bytes:
    file = io.BytesIO()
    write(file, entries(), {"why": "a test"})
    return file.getvalue()


WHOLE = written()


def test_what_is_written_is_read(tmp_path):
    (tmp_path / ARTIFACT).write_bytes(WHOLE)
    assert read(tmp_path / ARTIFACT) == entries()
    assert read_notes(tmp_path / ARTIFACT) == {"why": "a test"}
    assert tensors(tmp_path)["steps"].tolist() == [3, 2**40]


def test_the_bytes_of_the_tensors_are_the_file_but_for_its_index():
    assert len(WHOLE) - sum(len(entry.encoded.data) for entry in entries()) < 700


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
@settings(max_examples=60)
def test_every_changed_byte_is_noticed(tmp_path_factory, place, change):
    path = tmp_path_factory.mktemp("damaged") / ARTIFACT
    path.write_bytes(WHOLE[:place] + bytes([WHOLE[place] ^ change]) + WHOLE[place + 1 :])
    with pytest.raises(Failed):
        read(path)


@given(st.integers(0, len(WHOLE) - 1))
@settings(max_examples=30)
def test_a_file_cut_short_is_noticed(tmp_path_factory, size):
    path = tmp_path_factory.mktemp("short") / ARTIFACT
    path.write_bytes(WHOLE[:size])
    with pytest.raises(Failed) as failed:
        read(path)
    assert failed.value.details["cause"] == Cause.DAMAGED


def test_a_file_that_goes_on_is_noticed(tmp_path):
    (tmp_path / ARTIFACT).write_bytes(WHOLE + b"x")
    with pytest.raises(Failed):
        read(tmp_path / ARTIFACT)


def test_bytes_that_no_codec_wrote_are_a_damaged_artifact(tmp_path):
    wrong = Entry("a", (24, 32), "float32", encode("kquant", torch.ones(8, 8), {"bits": 4}))
    with (tmp_path / ARTIFACT).open("wb") as file:
        write(file, [wrong])
    with pytest.raises(Failed) as failed:
        tensors(tmp_path)
    assert failed.value.details["cause"] == Cause.DAMAGED


def test_an_expanded_folder_holds_the_decoded_weights_in_their_own_types(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / ARTIFACT).write_bytes(WHOLE)
    (source / "config.json").write_text("{}")
    expand(source, target)
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_file(Path(target) / "model.safetensors")
    for entry in entries():
        assert loaded[entry.name].dtype == getattr(torch, entry.dtype)
        assert torch.equal(loaded[entry.name], decode(entry.encoded, entry.shape).to(loaded[entry.name].dtype))
