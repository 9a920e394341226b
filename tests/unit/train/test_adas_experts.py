"""Singular-value experts: what they scale, how they mix, what is left when a mixture is merged, and who dispatches."""

import random

import pytest
import tiny_training as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from train.adas import dispatching
from train.adas.experts import LEAST, Composer, Dispatcher, Experts, attach, bounded, detach, factors, linears, off
from train.adas.mixing import cross_entropy_search
from train.adas.specialising import in_manner, padded, parted
from train.bitnet.linear import effective, ternary
from train.data.sources import Document, ask
from train.model.learner import Learner, fresh
from train.model.llama import Llama
from train.model.tokenizer import Tokenizer

TEXTS = ["What is the capital of France? Paris.", "How much is 3 + 4? 3 + 4 = 7", "Speak, speak. I know you all."] * 5


@pytest.fixture(scope="module")
def learner() -> Learner:
    torch.manual_seed(1)
    tokenizer = Tokenizer.train(TEXTS, 300)
    shape = tiny.Shape(width=32, layers=2, heads=1, feed_forward=64, vocab_size=tokenizer.vocab_size, context=64)
    return fresh(shape, tokenizer)


def some_experts(model: nn.Module, seed: int = 0, spread: float = 0.4) -> Experts:
    """Two experts of random scales."""
    generator = torch.Generator().manual_seed(seed)
    return Experts(
        {
            name: {
                layer: 1 + spread * torch.randn(min(each.weight.shape), generator=generator)
                for layer, each in linears(model).items()
            }
            for name in ("arithmetic", "facts")
        }
    )


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: each.weight.detach().clone() for name, each in linears(model).items()}


def test_experts_scale_every_linear_layer_but_the_output_matrix(learner):
    assert len(linears(learner.model)) == 2 * 7
    assert not any("lm_head" in name for name in linears(learner.model))


def test_no_offset_changes_nothing_at_all(learner):
    before = weights(learner.model)
    tokens = torch.randint(0, 64, (2, 9))
    logits = learner.model(tokens)
    scalings = attach(learner.model)
    assert torch.equal(learner.model(tokens), logits)
    trained = [name for name, p in learner.model.named_parameters() if p.requires_grad]
    assert len(trained) == len(scalings) and all(name.endswith("offset") for name in trained)
    vectors = detach(learner.model, scalings)
    assert all(torch.equal(z, torch.ones_like(z)) for z in vectors.values())
    assert all(torch.equal(weight, before[name]) for name, weight in weights(learner.model).items())
    assert all(p.requires_grad for p in learner.model.parameters())


def test_scaling_is_that_of_singular_values():
    weight = torch.randn(24, 16, dtype=torch.float64).float()
    layer = nn.Linear(16, 24, bias=False)
    model = nn.ModuleDict({"only": layer})
    layer.weight.data.copy_(weight)
    scaling = attach(model)["only"]
    scaling.offset.data.copy_(torch.linspace(-2, 1, 16))
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    wanted = u @ torch.diag(s * (1 + torch.linspace(-2, 1, 16)).clamp(min=LEAST)) @ vh
    assert torch.allclose(layer.weight, wanted, atol=1e-5)
    with off({"only": scaling}):
        assert torch.equal(layer.weight, weight)


def test_a_gradient_goes_through_the_scales_alone(learner):
    scalings = attach(learner.model)
    try:
        learner.model(torch.randint(0, 64, (1, 8))).sum().backward()
        assert all(s.offset.grad is not None and s.offset.grad.abs().sum() > 0 for s in scalings.values())
        assert learner.model.model.embed_tokens.weight.grad is None
    finally:
        detach(learner.model, scalings)


def test_a_mixture_is_there_and_gone(learner):
    experts = some_experts(learner.model)
    before, composer = weights(learner.model), Composer(learner, experts)
    with composer.using({"arithmetic": 0.5, "facts": 0.25}):
        name, layer = next(iter(linears(learner.model).items()))
        u, s, vh = factors(before[name])
        z = 1 + 0.5 * (experts.vectors["arithmetic"][name] - 1) + 0.25 * (experts.vectors["facts"][name] - 1)
        assert torch.allclose(layer.weight, (u * (s * z.clamp(min=LEAST))) @ vh, atol=1e-5)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(learner.model).items())


@settings(max_examples=15, deadline=None)
@given(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5), st.integers(0, 100))
def test_experts_of_a_merged_model_are_what_they_were(alpha, beta, seed):
    torch.manual_seed(seed)
    model = nn.ModuleDict({"a": nn.Linear(12, 20, bias=False), "b": nn.Linear(20, 8, bias=False)})
    experts, mixture = some_experts(model, seed), {"arithmetic": alpha, "facts": beta}
    base = Learner(model, None, 8, 0, lambda *_: None)
    rebased = experts.rebased(model, mixture)
    composer = Composer(base, experts)
    with composer.using({"facts": 1.0}):
        wanted = weights(model)
    with composer.using(mixture):
        merged = Composer(base, rebased)
        with merged.using({"facts": 1.0}):
            found = weights(model)
    for name, weight in wanted.items():
        assert torch.allclose(found[name], weight, atol=2e-3), (found[name] - weight).abs().max()


def test_experts_come_back_from_their_file(learner, tmp_path):
    experts = some_experts(learner.model)
    experts.dispatcher = Dispatcher(["arithmetic", "facts"], torch.randn(2, 32), torch.randn(2))
    (tmp_path / "experts.svf").write_bytes(experts.content())
    read = Experts.read(tmp_path / "experts.svf")
    assert list(read.vectors) == ["arithmetic", "facts"]
    for name, z_of in experts.vectors.items():
        assert all(torch.equal(read.vectors[name][layer], z) for layer, z in z_of.items())
    assert read.dispatcher is not None and read.dispatcher.families == ["arithmetic", "facts"]
    assert torch.equal(read.dispatcher.weight, experts.dispatcher.weight)
    (tmp_path / "none").write_bytes(Experts().content())
    assert Experts.read(tmp_path / "none") == Experts()


def test_the_scales_go_through_a_quantiser():
    torch.manual_seed(2)
    model = ternary(Llama(tiny.SHAPE))
    learner = Learner(model, None, 32, 0, lambda *_: None)
    before = effective(model)
    composer = Composer(learner, some_experts(model))
    with composer.using({"facts": 1.0}):
        after = effective(model)
        for weight in after.values():
            assert len(weight.unique()) <= 3
        assert any(not torch.equal(after[name], before[name]) for name in after)
    scalings = attach(model)
    model(torch.randint(0, 64, (1, 8))).sum().backward()
    assert all(s.offset.grad is not None for s in scalings.values())
    detach(model, scalings)
    assert all(torch.equal(weight, before[name]) for name, weight in effective(model).items())


def test_a_dispatcher_tells_families_apart_on_questions_that_it_has_not_seen(learner):
    chance = random.Random(0)
    sums = [f"How much is {chance.randrange(99)} + {chance.randrange(99)}?" for _ in range(60)]
    places = [f"What is the capital of {''.join(chance.choices('abcdefgh', k=6))}?" for _ in range(60)]
    questions, families = sums + places, ["arithmetic"] * 60 + ["facts"] * 60
    dispatcher = dispatching.fitted(learner, questions[::2], families[::2])
    assert dispatching.accuracy(learner, dispatcher, questions[1::2], families[1::2]) > 0.95
    assert dispatching.accuracy(learner, dispatcher, sums[1::2], ["facts"] * 30) < 0.05
    assert dispatching.prompted(learner, sums[0], ["arithmetic", "facts"]) in ("arithmetic", "facts")


def test_features_do_not_depend_on_what_stands_beside(learner):
    alone = dispatching.features(learner, ["Speak, speak."])
    beside = dispatching.features(learner, ["Speak, speak.", "What is the capital of France? Paris. " * 2])
    assert torch.allclose(alone[0], beside[0], atol=1e-5)


def test_the_cross_entropy_search_finds_the_weights():
    def fitness(mixture: dict[str, float]) -> float:
        return (mixture.get("a", 0) - 0.6) ** 2 + (mixture.get("b", 0) - 0.2) ** 2

    best, value = cross_entropy_search(fitness, ["a", "b"], rounds=8, population=16, seed=1)
    assert value == fitness(best) < 0.005
    nothing, worst = cross_entropy_search(
        lambda mixture: sum(abs(weight) for weight in mixture.values()), ["a"], rounds=2, population=4, seed=1
    )
    assert (nothing, worst) == ({}, 0)


@given(st.floats(-5, 5))
def test_scales_stay_above_the_least(offset):
    assert float(bounded(torch.tensor(offset))) >= LEAST - 1


def test_documents_are_parted_by_their_content():
    documents = [Document("sums", turns=ask(f"{i} + 1?", str(i + 1))) for i in range(200)]
    learn, measure = parted(documents)
    assert 10 < len(measure) < 45 and len(learn) + len(measure) == 200
    assert not set(learn) & set(measure)
    assert set(parted(documents[:100])[1]) <= set(measure)


def test_a_thinking_model_is_taught_with_thoughts(learner):
    document = Document("sums", turns=ask("1 + 1?", "2"))
    assert in_manner(learner, document) == document
    learner.tokenizer.thinks = True
    try:
        assert in_manner(learner, document).turns[1].content == "<|think|><|thought|>2"
    finally:
        learner.tokenizer.thinks = False


def test_answers_alone_are_targets():
    tokens, targets = padded([[1, 2, 3], [4]], [[7, 8], [9]], pad=0)
    assert tokens.tolist() == [[1, 2, 3, 7, 8], [4, 9, 0, 0, 0]]
    assert targets.tolist() == [[-100, -100, 7, 8, -100], [9, -100, -100, -100, -100]]
