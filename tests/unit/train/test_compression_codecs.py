import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.compression import hyper, seedlm
from train.compression.bits import Reader, Writer, pack, unpack
from train.compression.codecs import Known, decode, encode

WAYS = [
    ("cast", {"dtype": "bfloat16"}),
    *[("kquant", {"bits": bits}) for bits in (2, 3, 4, 5, 6, 8)],
    *[("gptq", {"bits": bits, "group": 16}) for bits in (2, 3, 4, 8)],
    *[("gptq", {"step": step}) for step in (0.1, 0.5, 2.0)],
    ("vptq", {"dim": 4, "centroids": 16, "residual": 0}),
    ("vptq", {"dim": 2, "centroids": 16, "residual": 8}),
    ("seedlm", {"c": 8, "p": 3, "seeds": 128}),
    ("seedlm", {"c": 16, "p": 2, "seeds": 100}),
    ("hyper", {"points": 64, "classes": 4}),
    ("hyper", {"points": 256, "classes": 1}),
]
shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))


def matrix(rows: int, columns: int, seed: int = 0, scale: float = 0.05) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale


def known(columns: int, seed: int = 1) -> Known:
    """Inputs that go together, as those of a real layer do."""
    x = matrix(400, columns, seed, 1.0) @ (torch.eye(columns) + matrix(columns, columns, seed + 1, 0.5))
    return Known(x.T @ x / len(x))


@given(st.integers(1, 16), st.lists(st.integers(0, 2**16 - 1), max_size=70))
def test_packed_numbers_come_back_from_no_more_bytes_than_they_need(width, numbers):
    values = np.array(numbers, dtype=np.int64) % (1 << width)
    data = pack(values, width)
    assert len(data) == math.ceil(len(values) * width / 8)
    assert unpack(data, width, len(values)).tolist() == values.tolist()


@given(st.integers(1, 12), st.lists(st.integers(0, 3), max_size=300))
def test_a_stream_is_never_longer_than_packed(width, numbers):
    values = np.array(numbers, dtype=np.int64) % (1 << width)
    writer = Writer()
    writer.integers(values, width)
    assert len(writer.data) <= 6 + math.ceil(len(values) * width / 8)
    assert Reader(writer.data).integers(len(values), width).tolist() == values.tolist()


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError):
        pack(np.array([8]), 3)


@pytest.mark.parametrize(("codec", "params"), WAYS, ids=str)
@settings(max_examples=8)
@given(shapes, st.integers(0, 5))
def test_a_codec_gives_back_the_shape_and_the_same_bits_each_time(codec, params, shape, seed):
    weight = matrix(shape[0], shape[1], seed)
    encoded = encode(codec, weight, params, known(shape[1]), seed)
    once, twice = decode(encoded, shape), decode(encode(codec, weight, params, known(shape[1]), seed), shape)
    assert once.shape == shape and torch.isfinite(once).all()
    assert torch.equal(once, twice)


@pytest.mark.parametrize(("codec", "params"), WAYS, ids=str)
def test_a_codec_says_when_bytes_are_missing_or_left_over(codec, params):
    encoded = encode(codec, matrix(16, 32), params)
    for data in (encoded.data[:-1], encoded.data + b"x"):
        with pytest.raises(ValueError):
            decode(type(encoded)(codec, params, data), (16, 32))


@pytest.mark.parametrize(("codec", "params"), WAYS, ids=str)
@pytest.mark.parametrize("value", [0.0, -0.3, 1e-9, 1e4])
def test_strange_weights_are_no_trouble(codec, params, value):
    for weight in (torch.full((8, 32), value), matrix(8, 32, scale=value)):
        back = decode(encode(codec, weight, params), (8, 32)).float()
        assert torch.isfinite(back).all()
        assert (back - weight).norm() <= weight.norm() + 1e-6


@pytest.mark.parametrize(("codec", "params"), WAYS[1:], ids=str)
@given(st.integers(0, 99))
@settings(max_examples=3)
def test_a_codec_is_smaller_than_two_bytes_a_weight(codec, params, seed):
    encoded = encode(codec, matrix(64, 96, seed), params, known(96))
    assert len(encoded.data) < 2 * 64 * 96


@given(st.sampled_from([2, 3, 4, 5, 6, 8]), st.integers(0, 999), st.floats(1e-3, 10))
@settings(max_examples=40)
def test_k_quants_round_within_half_a_step(bits, seed, scale):
    weight = matrix(16, 64, seed, scale)
    back = decode(encode("kquant", weight, {"bits": bits}), (16, 64))
    blocks, wrong = weight.view(-1, 32), (back - weight).view(-1, 32)
    span = blocks.amax(1).clamp(min=0) - blocks.amin(1).clamp(max=0)
    coarse = weight.view(-1, 256)  # a super-block's scales have 6 bits, and float16 units
    unit = (coarse.amax(1).clamp(min=0) - coarse.amin(1).clamp(max=0)).repeat_interleave(8) * (1 / 63 + 2e-3)
    bound = (0.5 * span / (2**bits - 1) + 1.5 * unit).square()
    assert (wrong.square().mean(1) <= bound).all()  # the best of several grids is no worse than the whole range's


@given(st.floats(0.05, 3), st.integers(0, 999))
@settings(max_examples=40)
def test_one_grid_rounds_within_half_a_step(step, seed):
    weight = matrix(16, 24, seed)
    back = decode(encode("gptq", weight, {"step": step}), (16, 24))
    unit = max(float(weight.std(correction=0)) * step, float(weight.abs().max()) / 127)
    assert (back - weight).abs().max() <= unit * 0.5001


@given(st.integers(0, 30), st.sampled_from([{"bits": 3, "group": 32}, {"step": 0.8}]))
@settings(max_examples=15)
def test_gptq_leaves_less_error_than_rounding_alone(seed, params):
    weight, inputs = matrix(48, 32, seed), known(32, seed)
    fed_back = decode(encode("gptq", weight, params, inputs), (48, 32))
    rounded = decode(encode("gptq", weight, params), (48, 32))
    assert inputs.error(fed_back - weight) < inputs.error(rounded - weight)


def test_uneven_numbers_take_fewer_bits_than_their_width():
    weight = matrix(128, 128)
    assert len(encode("gptq", weight, {"step": 1.0}).data) * 8 / weight.numel() < 2.25  # packed: 4
    assert len(encode("gptq", weight, {"step": 2.5}).data) * 8 / weight.numel() < 1.2  # Huffman code of each: 1.4


def test_ternary_weights_are_kept_bit_for_bit():
    weight = torch.randint(-1, 2, (33, 21)) * 0.0371
    encoded = encode("trits", weight, {})
    assert torch.equal(decode(encoded, (33, 21)), weight)
    assert len(encoded.data) <= 4 + 6 + math.ceil(33 * 21 / 5)
    with pytest.raises(ValueError):
        encode("trits", matrix(4, 4), {})


def test_vptq_finds_the_vectors_that_there_are():
    book = matrix(8, 4).half().float()
    drawn = torch.randint(0, 8, (10, 24), generator=torch.Generator().manual_seed(0))
    weight = book[drawn].transpose(1, 2).reshape(40, 24)  # four rows of a column are a vector
    back = decode(encode("vptq", weight, {"dim": 4, "centroids": 8, "residual": 0}), (40, 24))
    assert torch.allclose(back, weight, atol=1e-4)


def test_the_shift_register_is_the_papers():
    states = [4]
    for _ in range(8):
        states.append(seedlm.following(states[-1], 3, (3, 2)))
    assert states[1:] == [2, 5, 6, 7, 3, 1, 4, 2]  # figure 4


def test_the_shift_register_meets_every_state_but_zero():
    assert len(set(seedlm.states().tolist())) == seedlm.PERIOD
    assert 0 not in seedlm.states()


@given(st.integers(1, seedlm.PERIOD))
def test_a_projection_is_what_the_register_gives_after_the_seed(seed):
    state, wanted = seed, []
    for _ in range(24):
        state = seedlm.following(state)
        wanted.append((state - 2**15) / (2**15 - 1))
    made = seedlm.projection(np.array([seed]), 8, 3)[0]
    assert made.flatten().tolist() == pytest.approx(wanted)
    assert made.abs().max() <= 1.0001


def test_seedlm_is_about_as_good_as_trying_every_seed():
    weight, params = matrix(8, 64), {"c": 8, "p": 3, "seeds": 512}
    found = (decode(encode("seedlm", weight, params), (8, 64)) - weight).view(-1, 8).square().sum(1)
    blocks, u = weight.view(-1, 8), seedlm.projection(np.arange(1, 513), 8, 3)
    t = torch.einsum("spc,bc->bsp", torch.linalg.pinv(u), blocks)
    unit = torch.exp2((t.abs().amax(-1) / 7).log2().ceil())[..., None]
    best = torch.full_like(found, torch.inf)
    for scale in (unit, unit / 2):
        rounded = (t / scale).round().clamp(-8, 7) * scale
        wrong = (torch.einsum("scp,bsp->bsc", u, rounded) - blocks[:, None]).square().sum(-1)
        best = torch.minimum(best, wrong.amin(1))
    assert (found >= best * 0.999).all() and float(found.sum()) <= 1.05 * float(best.sum())


def test_seedlm_weighs_what_the_paper_says_or_less():
    for c, p, bits in ((8, 3, 4.0), (12, 4, 3.0), (16, 2, 1.75)):
        weight = matrix(96, 64)
        data = encode("seedlm", weight, {"c": c, "p": p, "seeds": 64}).data
        assert len(data) * 8 <= bits * weight.numel() + 8 * 20


@pytest.mark.parametrize("classes", [1, 4])
def test_a_pair_of_weights_lies_on_the_trajectory_in_the_square_of_its_class(classes):
    encoded = encode("hyper", matrix(12, 24), {"points": 64, "classes": classes})
    sides, line = Reader(encoded.data).floats(classes, "<f4"), hyper.trajectory(64)
    assert len(np.unique(line, axis=0)) == 64 and np.abs(line).max() <= 1
    reachable = torch.from_numpy(np.concatenate([line * side for side in sides]))
    pairs = decode(encoded, (12, 24)).view(-1, 2)
    assert ((pairs[:, None] - reachable).abs().amax(-1).amin(1) == 0).all()
