"""Packed trits: five to a byte, back bit for bit."""

from pathlib import Path

import pytest
import tiny_training as tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.torch import load_file

from train.bitnet.linear import ternary
from train.bitnet.packing import pack, read_packed, ternary_bytes, unpack, write_packed
from train.model.learner import fresh
from train.model.llama import Llama
from train.model.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["one two three four five"], vocab_size=300)


@given(arrays("int8", array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=17), elements=st.integers(-1, 1)))
def test_trits_come_back_from_a_fifth_as_many_bytes(values):
    tensor = torch.from_numpy(values)
    packed = pack(tensor)
    assert packed.dtype == torch.uint8 and len(packed) == -(-values.size // 5)
    assert torch.equal(unpack(packed, values.size).view(tensor.shape), tensor)


@pytest.mark.parametrize("values", [[2], [0, -2], [1, 0, 127]])
def test_what_is_no_trit_is_refused(values):
    with pytest.raises(ValueError, match="trit"):
        pack(torch.tensor(values, dtype=torch.int8))


@pytest.mark.parametrize(("packed", "count"), [([243], 5), ([0], 6), ([0, 0], 5), ([0], 0)])
def test_bytes_that_hold_no_such_trits_are_refused(packed, count):
    with pytest.raises(ValueError, match="packed trits"):
        unpack(torch.tensor(packed, dtype=torch.uint8), count)


def test_the_packed_file_holds_the_folders_weights_bit_for_bit(tmp_path: Path):
    learner = fresh(tiny.SHAPE, TOKENIZER)
    ternary(learner.model)
    learner.save(tmp_path)
    path = tmp_path / "packed"
    write_packed(learner.model, path)
    stored, read = load_file(tmp_path / "model.safetensors"), read_packed(path)
    assert read.keys() == stored.keys()
    for name, tensor in stored.items():
        assert torch.equal(read[name].view(torch.int32), tensor.view(torch.int32)), name
    weights = sum(t.numel() for name, t in stored.items() if name.endswith("_proj.weight"))
    matrices = sum(name.endswith("_proj.weight") for name in stored)
    assert weights / 5 <= ternary_bytes(path) <= weights / 5 + 3 * matrices
    assert path.stat().st_size < (tmp_path / "model.safetensors").stat().st_size


def test_a_model_without_ternary_layers_is_stored_as_it_is(tmp_path: Path):
    model = Llama(tiny.SHAPE)
    write_packed(model, tmp_path / "packed")
    read = read_packed(tmp_path / "packed")
    assert all(torch.equal(read[name], tensor) for name, tensor in model.state_dict().items() if name in read)
    assert read.keys() == model.state_dict().keys() - {"lm_head.weight"}
    assert ternary_bytes(tmp_path / "packed") == 0
