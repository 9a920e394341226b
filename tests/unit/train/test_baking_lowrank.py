"""Low-rank deltas: nothing to begin with, nothing else is trained, and merged they are the weights."""

import pytest
import tiny_training as tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from train.baking import lowrank
from train.bitnet.linear import BitLinear, is_ternary, ternary
from train.causes import Failed
from train.model.llama import Llama

IDS = torch.arange(2, 26)[None]


def model(kind: str) -> Llama:
    torch.manual_seed(1)
    made = Llama(tiny.SHAPE)
    if kind == "ternary":
        ternary(made)
    return made


def moved(made: nn.Module) -> None:
    for module in made.modules():
        if isinstance(module, lowrank.LowRank):
            nn.init.normal_(module.b, std=0.3)


@pytest.mark.parametrize("kind", ["plain", "ternary"])
def test_deltas_begin_as_nothing_and_merge_as_what_they_are(kind: str):
    made = model(kind)
    names = set(made.state_dict())
    with torch.no_grad():
        before = made(IDS)
        parameters = lowrank.add(made, rank=4, alpha=8)
        assert torch.equal(made(IDS), before)
        moved(made)
        trained = made(IDS)
        assert not torch.allclose(trained, before, atol=1e-3)
        with lowrank.without(made):
            assert torch.equal(made(IDS), before)
        assert torch.equal(made(IDS), trained)
        assert {id(p) for p in made.parameters() if p.requires_grad} == {id(p) for p in parameters}
        lowrank.merge(made)
        torch.testing.assert_close(made(IDS), trained)
    assert set(made.state_dict()) == names
    assert all(parameter.requires_grad for parameter in made.parameters())
    assert made.lm_head.weight is made.model.embed_tokens.weight
    assert is_ternary(made) == (kind == "ternary")


def test_a_delta_goes_through_the_quantiser():
    made = model("ternary")
    layer = next(module for module in made.modules() if isinstance(module, BitLinear))
    lowrank.add(made, rank=4, alpha=8)
    made(IDS).square().mean().backward()
    delta = layer.parametrizations.weight[0]  # type: ignore[union-attr,index]
    assert delta.b.grad is not None and delta.b.grad.abs().sum() > 0
    moved(made)
    with torch.no_grad():
        assert len(layer(torch.eye(tiny.SHAPE.width)).unique()) <= 3


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 12), st.floats(0.5, 64))
def test_a_delta_has_its_rank_and_scale(out: int, inside: int, rank: int, alpha: float):
    layer = nn.Sequential(nn.Linear(inside, out, bias=False))
    before = layer[0].weight.detach().clone()
    a, b = lowrank.add(layer, rank, alpha)
    least = min(rank, out, inside)
    assert a.shape == (least, inside) and b.shape == (out, least)
    nn.init.normal_(b)
    lowrank.merge(layer)
    expected = before + alpha / least * b @ a
    torch.testing.assert_close(layer[0].weight, expected)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(Failed):
        lowrank.add(nn.Embedding(3, 3), 1, 1.0)
