"""BitLinear: what it multiplies by, its gradients, and that a ternary model is the same one from its folder."""

import json
from pathlib import Path

import pytest
import tiny_training as tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrize

from cluster.errors import VillageError
from train.bitnet.linear import (
    BitLinear,
    effective,
    is_ternary,
    layers,
    quantised,
    rounded,
    scale_of,
    set_lam,
    settled,
    ternary,
    trits,
)
from train.model.checkpoint import LATENTS, load_llama
from train.model.learner import fresh, hub, load
from train.model.llama import Llama
from train.model.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["one two three four five"], vocab_size=300)
TOKENS = torch.arange(2, 26).view(2, 12)


def matrix(seed: int, rows: int = 6, columns: int = 9, size: float = 0.05) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size


@given(seed=st.integers(0, 10_000), size=st.floats(1e-3, 10))
def test_weights_are_their_scale_times_the_nearest_trits(seed: int, size: float):
    weight = matrix(seed, size=size)
    scale, found = scale_of(weight), quantised(weight)
    assert scale.item() == pytest.approx(weight.abs().mean().item(), rel=2**-8)
    assert torch.equal(found.view(torch.int32), (trits(weight, scale) * scale).view(torch.int32))  # no -0 either
    others = torch.stack([(weight - trit * scale).abs() for trit in (-1, 0, 1)])
    torch.testing.assert_close((weight - found).abs(), others.min(0).values)


@given(seed=st.integers(0, 10_000))
def test_bfloat16_changes_no_ternary_weight(seed: int):
    found = quantised(matrix(seed))
    assert torch.equal(found.bfloat16().float(), found)


@given(seed=st.integers(0, 10_000), size=st.floats(1e-2, 100))
def test_activations_have_255_values_per_token(seed: int, size: float):
    x = matrix(seed, size=size)
    step = x.abs().amax(-1, keepdim=True) / 127
    assert ((rounded(x) - x).abs() <= step * 0.501).all()
    grid = rounded(x) / step
    torch.testing.assert_close(grid, grid.round(), atol=1e-3, rtol=0)
    assert grid.abs().max() <= 127.001
    assert torch.equal(rounded(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_lam_mixes_full_precision_and_ternary():
    x, layer = matrix(1, 4, 9, 1.0), BitLinear(9, 6)
    layer.activations = False
    full = nn.functional.linear(x, layer.weight, layer.bias)
    hard = nn.functional.linear(x, quantised(layer.weight), layer.bias)
    for lam in (0.0, 0.25, 1.0):
        layer.lam = lam
        torch.testing.assert_close(layer(x), (1 - lam) * full + lam * hard)
    layer.activations = True
    assert torch.equal(layer(x), nn.functional.linear(rounded(x), quantised(layer.weight), layer.bias))


@pytest.mark.parametrize("lam", [0.3, 1.0])
def test_the_gradient_goes_straight_through(lam: float):
    x, layer = matrix(2, 4, 9, 1.0).requires_grad_(), BitLinear(9, 6)
    layer.lam = lam
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is not None
    with torch.no_grad():
        mixed = torch.lerp(layer.weight, quantised(layer.weight), lam)
        seen = torch.lerp(x, rounded(x), lam)
    torch.testing.assert_close(x.grad, mixed.sum(0).expand(4, 9))
    torch.testing.assert_close(layer.weight.grad, seen.sum(0).expand(6, 9))


def test_a_parametrisation_of_the_weight_goes_through_the_quantiser():
    class Plus(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.delta = nn.Parameter(matrix(4, 6, 9, 1.0))

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight + self.delta

    layer, x = BitLinear(9, 6), matrix(3, 4, 9, 1.0)
    plain = layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", added := Plus())
    expected = nn.functional.linear(rounded(x), quantised(plain + added.delta), layer.bias)
    assert torch.equal(layer(x), expected)
    layer(x).sum().backward()
    assert added.delta.grad is not None and added.delta.grad.abs().sum() > 0


def test_only_the_blocks_become_ternary():
    model = Llama(tiny.SHAPE)
    before = dict(model.named_parameters())
    assert not is_ternary(model)
    assert ternary(model) is model and is_ternary(model)
    assert len(list(layers(model))) == 7 * tiny.SHAPE.layers
    assert all("self_attn" in name or "mlp" in name for name, _ in layers(model))
    after = dict(model.named_parameters())
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_without_linear_layers_there_is_nothing_to_make_ternary():
    with pytest.raises(VillageError, match="no linear layers") as raised:
        ternary(nn.Embedding(3, 4))
    assert raised.value.details["cause"] == "base_model"


def test_a_ternary_model_comes_back_ternary_and_equal(tmp_path: Path):
    learner = fresh(tiny.SHAPE, TOKENIZER)
    ternary(learner.model)
    learner.save(tmp_path)
    again = load(tmp_path)
    assert is_ternary(again.model)
    with torch.no_grad():
        assert torch.equal(again.model(TOKENS), learner.model(TOKENS))
    for (_, one), (_, other) in zip(layers(again.model), layers(learner.model), strict=True):
        assert torch.equal(one.weight, other.weight) and one.lam == 1
    (tmp_path / "again").mkdir()
    again.save(tmp_path / "again")
    for name in ("model.safetensors", LATENTS):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_the_folder_serves_the_ternary_weights_as_a_plain_llama(tmp_path: Path):
    from transformers import LlamaForCausalLM

    learner = fresh(tiny.SHAPE, TOKENIZER)
    ternary(learner.model)
    learner.save(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for name, weight in effective(learner.model).items():
        assert torch.equal(stored[name], weight) and len(weight.unique()) == 3
    assert list(tmp_path.glob("*.safetensors")) == [tmp_path / "model.safetensors"]  # vLLM loads all that it finds
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    for _, layer in layers(learner.model):
        layer.activations = False
    with torch.no_grad():
        theirs = LlamaForCausalLM.from_pretrained(tmp_path)(TOKENS).logits
        torch.testing.assert_close(theirs, learner.model(TOKENS), atol=1e-4, rtol=1e-4)


def test_effective_weights_lose_the_scale_so_that_the_latent_ones_are_kept(tmp_path: Path):
    learner = fresh(tiny.SHAPE, TOKENIZER)
    ternary(learner.model)
    learner.save(tmp_path)
    (tmp_path / LATENTS).unlink()
    plain, _ = load_llama(tmp_path)
    assert not is_ternary(plain)
    _, first = next(layers(learner.model))
    _, second = next(layers(ternary(plain)))
    assert torch.equal(quantised(first.weight).sign(), quantised(second.weight).sign())
    assert scale_of(second.weight) < 0.9 * scale_of(first.weight)


def test_a_transformers_model_becomes_ternary_too(tmp_path: Path):
    from transformers import LlamaForCausalLM

    for folder in ("plain", "ternary"):
        (tmp_path / folder).mkdir()
    fresh(tiny.SHAPE, TOKENIZER).save(tmp_path / "plain")
    learner = hub(str(tmp_path / "plain"))
    ternary(learner.model)
    assert len(list(layers(learner.model))) == 7 * tiny.SHAPE.layers
    learner.save(tmp_path / "ternary")
    config = tmp_path / "ternary" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"aivillage": False}))  # as from elsewhere
    again = load(tmp_path / "ternary")
    assert isinstance(again.model.inner, LlamaForCausalLM) and is_ternary(again.model)
    with torch.no_grad():
        assert torch.equal(again.model(TOKENS), learner.model(TOKENS))
        for each in (learner.model, again.model):
            for _, layer in layers(each):
                layer.activations = False
        theirs = LlamaForCausalLM.from_pretrained(tmp_path / "ternary")(TOKENS).logits
        torch.testing.assert_close(theirs, again.model(TOKENS), atol=1e-4, rtol=1e-4)


def test_lam_is_set_everywhere():
    model = ternary(Llama(tiny.SHAPE))
    set_lam(model, 0.5)
    assert {layer.lam for _, layer in layers(model)} == {0.5}


@torch.no_grad()
def test_settled_layers_give_the_same_without_quantising_again(monkeypatch: pytest.MonkeyPatch):
    model = ternary(Llama(tiny.SHAPE))
    expected, calls = model(TOKENS), []
    monkeypatch.setattr("train.bitnet.linear.scale_of", lambda weight: calls.append(weight) or scale_of(weight))
    with pytest.raises(KeyError), settled(model):
        assert torch.equal(model(TOKENS), expected) and torch.equal(model(TOKENS), expected)
        assert len(calls) == 7 * tiny.SHAPE.layers
        raise KeyError
    assert all(layer.settled is None for _, layer in layers(model))
    next(layers(model))[1].weight.neg_()
    assert not torch.equal(model(TOKENS), expected)
