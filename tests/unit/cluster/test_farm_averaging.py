"""Federated averaging: held against the naive mean, and what is left out of it."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from cluster.farm import tensors
from cluster.farm.averaging import Share, average, weights
from cluster.farm.tensors import BadCheckpoint

TOLERANCE = {np.float64: 1e-12, np.float32: 1e-6, np.float16: 1e-2}
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@st.composite
def rounds(draw: st.DrawFn):
    """A model's layout, and several ranks' values and samples."""
    layout = draw(
        st.dictionaries(
            st.text("abc.", min_size=1, max_size=4),
            st.tuples(st.sampled_from(list(TOLERANCE)), shapes),
            min_size=1,
            max_size=4,
        )
    )
    count = draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**32 - 1))
    samples = draw(st.lists(st.none() | st.integers(0, 1000), min_size=count, max_size=count))
    made = np.random.default_rng(seed)
    ranks = [
        {n: np.asarray(made.normal(size=shape) * 100).astype(kind) for n, (kind, shape) in layout.items()}
        for _ in range(count)
    ]
    return ranks, samples


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(rounds(), st.integers(1, 7))
def test_it_is_the_naive_weighted_mean_however_small_the_pieces(tmp_path: Path, monkeypatch_piece, made, piece: int):
    ranks, samples = made
    monkeypatch_piece(piece)
    shares = []
    for number, content in enumerate(ranks):
        save_file(content, tmp_path / f"{number}.safetensors")
        shares.append(Share(number, tmp_path / f"{number}.safetensors", samples[number]))
    done = average(shares, tmp_path / "mean.safetensors")
    assert done.ranks == tuple(range(len(ranks))) and not done.refused
    parts = np.array(weights(samples))
    assert parts.sum() == pytest.approx(1)
    found = load_file(tmp_path / "mean.safetensors")
    assert found.keys() == ranks[0].keys()
    for name, value in found.items():
        naive = sum(part * content[name].astype(np.float64) for part, content in zip(parts, ranks, strict=True))
        kind = ranks[0][name].dtype.type
        assert value.dtype.type is kind and value.shape == ranks[0][name].shape
        np.testing.assert_allclose(value.astype(np.float64), naive, rtol=TOLERANCE[kind], atol=TOLERANCE[kind])


@pytest.fixture
def monkeypatch_piece(monkeypatch: pytest.MonkeyPatch):
    return lambda size: monkeypatch.setattr(tensors, "PIECE", size)


def test_weights_are_samples_and_who_told_none_weighs_as_the_mean():
    assert weights([10, 30]) == [0.25, 0.75]
    assert weights([None, None, None]) == [1 / 3] * 3
    assert weights([10, 30, None]) == pytest.approx([1 / 6, 1 / 2, 1 / 3])
    assert weights([0, 5]) == [0, 1] and weights([0, 0]) == [0.5, 0.5]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_bfloat16_is_averaged_as_torch_would(tmp_path: Path, seed: int, count: int):
    made = torch.Generator().manual_seed(seed)
    ranks = [torch.randn(37, generator=made).to(torch.bfloat16) for _ in range(count)]
    shares = []
    for number, value in enumerate(ranks):
        save_torch({"w": value}, tmp_path / f"b{number}.safetensors")
        shares.append(Share(number, tmp_path / f"b{number}.safetensors", number + 1))
    average(shares, tmp_path / "b.safetensors")
    parts = torch.tensor(weights([share.samples for share in shares]), dtype=torch.float64)
    wanted = sum(p * r.double() for p, r in zip(parts, ranks, strict=True))
    found = load_torch(tmp_path / "b.safetensors")["w"]
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, torch.as_tensor(wanted).to(torch.bfloat16))


def saved(folder: Path, number: int, **content: np.ndarray) -> Share:
    save_file(content, folder / f"{number}.safetensors")
    return Share(number, folder / f"{number}.safetensors", None)


ONE = np.ones(3, np.float32)


def test_who_differs_from_most_is_left_out_and_named(tmp_path: Path):
    good = [saved(tmp_path, n, w=ONE * n, steps=np.array([7])) for n in (0, 1, 2)]
    odd = [
        saved(tmp_path, 3, w=np.ones(4, np.float32), steps=np.array([7])), saved(tmp_path, 4, w=ONE),
        saved(tmp_path, 5, w=ONE, steps=np.array([7]), more=ONE),
        saved(tmp_path, 6, w=ONE.astype(np.float64), steps=np.array([7])),
        saved(tmp_path, 7, w=ONE, steps=np.array([8])),
    ]  # fmt: skip
    (tmp_path / "8.safetensors").write_bytes(b"nothing of the kind")
    done = average([*odd, *good, Share(8, tmp_path / "8.safetensors", None)], tmp_path / "mean")
    assert done.ranks == (0, 1, 2)
    assert load_file(tmp_path / "mean")["w"].tolist() == [1, 1, 1] and load_file(tmp_path / "mean")["steps"] == 7
    assert done.refused == {
        3: "w is F32 [4], and should be F32 [3]", 4: "steps is missing", 5: "more is not in the model",
        6: "w is F64 [3], and should be F32 [3]", 7: "its whole numbers are others than those of most ranks",
        8: done.refused[8],
    }  # fmt: skip
    assert done.refused[8].startswith(("no safetensors header", "not a safetensors file"))


def test_the_model_that_the_round_began_with_decides_even_against_most(tmp_path: Path):
    model = saved(tmp_path, 9, w=ONE)
    shares = [saved(tmp_path, n, w=np.ones(4, np.float32)) for n in (0, 1)] + [saved(tmp_path, 2, w=ONE)]
    assert average(shares, tmp_path / "mean", model.path).ranks == (2,)


def test_where_nobody_is_left_nothing_is_written(tmp_path: Path):
    model = saved(tmp_path, 9, w=ONE)
    done = average([saved(tmp_path, 0, v=ONE)], tmp_path / "mean", model.path)
    assert done.ranks == () and not (tmp_path / "mean").exists() and not average([], tmp_path / "mean").ranks


def test_what_is_not_finite_is_found_in_every_type(tmp_path: Path):
    for kind in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        for bad in (float("nan"), float("inf"), -float("inf")):
            save_torch({"w": torch.tensor([1.0, bad], dtype=kind)}, tmp_path / "x")
            with pytest.raises(BadCheckpoint, match="finite"):
                tensors.check_finite(tensors.opened(tmp_path / "x"))
        largest = torch.finfo(kind).max
        save_torch({"w": torch.tensor([largest, -largest, 0.0], dtype=kind)}, tmp_path / "x")
        tensors.check_finite(tensors.opened(tmp_path / "x"))


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}},
        {"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32"}},
        {"w": 3},
        {"w": {"dtype": "NO", "shape": [2], "data_offsets": [0, 8]}},
        {},
        [],
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header):
    text = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + b"\x00" * 8)
    with pytest.raises(BadCheckpoint):
        tensors.opened(tmp_path / "x")


def test_a_type_that_nobody_averages_is_refused(tmp_path: Path):
    save_torch({"w": torch.zeros(4, dtype=torch.float8_e4m3fn)}, tmp_path / "x")
    with pytest.raises(BadCheckpoint, match="F8_E4M3"):
        tensors.opened(tmp_path / "x")


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes):
    (tmp_path / "x").write_bytes(content)
    with suppress(BadCheckpoint):
        tensors.check_finite(tensors.opened(tmp_path / "x"))
