"""Merging beside mergekit, the judge: the same folders, the same configuration, the same tensors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from train.evomerge import operators
from train.evomerge.merging import depth, merged, usual
from train.model.checkpoint import save_llama
from train.model.learner import load
from train.model.llama import Llama
from train.model.shape import Shape
from train.model.tokenizer import Tokenizer

SHAPE = Shape(width=32, layers=4, heads=1, feed_forward=64, vocab_size=300, context=32)
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """A base, as the last, and three models trained from it, so to say."""
    tokenizer, made = Tokenizer.train(["a tale of a tub"], 300), []
    shape = Shape(**vars(SHAPE) | {"vocab_size": tokenizer.vocab_size})
    torch.manual_seed(0)
    base = Llama(shape).state_dict()
    for number in range(4):
        torch.manual_seed(number)
        model, folder = Llama(shape), tmp_path_factory.mktemp("models") / str(number)
        distance = 0.0 if number == 3 else 0.03
        model.load_state_dict({name: x + distance * torch.randn_like(x) for name, x in base.items()})
        model.lm_head.weight = model.model.embed_tokens.weight
        folder.mkdir()
        save_llama(model, shape, tokenizer, folder)
        made.append(folder)
    return made


@pytest.fixture(scope="module")
def states(folders) -> list[State]:
    return [load_file(folder / "model.safetensors") for folder in folders]


def judged(folder: Path, configuration: dict[str, Any], seed: int | None = None) -> State:
    """What mergekit makes of it."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False, random_seed=seed, device="cpu")
    run_merge(MergeConfiguration.model_validate({"dtype": "float32"} | configuration), str(folder), options)
    return load_file(folder / "model.safetensors")


def models(folders: list[Path], *, weights: tuple[Any, ...], **parameters: Any) -> list[dict[str, Any]]:
    pairs = zip(folders, weights, strict=False)
    return [{"model": str(folder), "parameters": {"weight": w, **parameters}} for folder, w in pairs]


def assert_alike(ours: State, theirs: State) -> None:
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        torch.testing.assert_close(ours[name], x, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_linear_is_mergekits(folders, states, tmp_path):
    theirs = judged(tmp_path, {"merge_method": "linear", "models": models(folders[:3], weights=(0.2, 1.0, 0.5))})
    assert_alike(operators.linear(states[:3], [0.2, 1.0, 0.5]), theirs)


def test_linear_with_weights_by_layer_is_mergekits(folders, states, tmp_path):
    by_layer = [{"filter": "layers.0.", "value": 0.9}, {"filter": "layers.3.", "value": 0.4}, {"value": 0.1}]
    theirs = judged(tmp_path, {"merge_method": "linear", "models": models(folders[:2], weights=(by_layer, 0.3))})

    def weight(name: str) -> float:
        return {0: 0.9, 3: 0.4}.get(operators.layer(name), 0.1)  # type: ignore[arg-type]

    assert_alike(operators.linear(states[:2], [weight, 0.3]), theirs)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_is_mergekits(folders, states, tmp_path, t):
    both = [{"model": str(folder)} for folder in folders[:2]]
    configuration = {"merge_method": "slerp", "base_model": str(folders[0]), "models": both, "parameters": {"t": t}}
    assert_alike(operators.slerp(states[:2], t), judged(tmp_path, configuration))


def test_task_arithmetic_is_mergekits(folders, states, tmp_path):
    theirs = judged(
        tmp_path,
        {
            "merge_method": "task_arithmetic", "base_model": str(folders[3]),
            "models": models(folders[:3], weights=(0.7, 0.2, -0.3)), "parameters": {"lambda": 1.4},
        },
    )  # fmt: skip
    assert_alike(operators.task_arithmetic(states[3], states[:3], [0.7, 0.2, -0.3], 1.4), theirs)


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_ties_is_mergekits(folders, states, tmp_path, density):
    """mergekit divides by the sum of the weights that agree unless told otherwise: the paper's disjoint mean.

    Of entries that lie exactly at the threshold ours keeps all, mergekit some: none do in these tensors.
    """
    theirs = judged(
        tmp_path,
        {
            "merge_method": "ties", "base_model": str(folders[3]),
            "models": models(folders[:3], weights=(0.7, 0.2, 0.5), density=density), "parameters": {"lambda": 0.8},
        },
    )  # fmt: skip
    assert_alike(operators.ties(states[3], states[:3], [0.7, 0.2, 0.5], density, 0.8), theirs)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_is_mergekits_with_the_same_seed(folders, states, tmp_path, method, monkeypatch):
    """Three of mergekit's options are set, or it would do something else than the paper.

    `rescale: false` and `lambda: 1 / (1 - p)`, since its own rescaling restores each tensor's L1 norm instead; and for
    dare_ties `normalize: true`, since otherwise it adds up what agrees in sign instead of taking its mean.
    """
    from mergekit.merge_methods import generalized_task_arithmetic as theirs_inside

    order, sparsify, drop = [], theirs_inside.sparsify, 0.6

    def noting(delta: Tensor, **parameters: Any) -> Tensor:
        order.append(delta.clone())
        return sparsify(delta, **parameters)

    monkeypatch.setattr(theirs_inside, "sparsify", noting)
    theirs = judged(
        tmp_path,
        {
            "merge_method": method, "base_model": str(folders[3]),
            "models": models(folders[:2], weights=(0.7, 0.4), density=1 - drop),
            "parameters": {"rescale": False, "lambda": 1 / (1 - drop), "normalize": method == "dare_ties"},
        },
        seed=11,
    )  # fmt: skip
    # The masks come from one stream of chance, so the tensors have to come in the order in which mergekit takes them.
    deltas = {name: states[0][name] - x for name, x in states[3].items()}
    firsts = [next(name for name, x in deltas.items() if x.shape == d.shape and torch.equal(x, d)) for d in order[::2]]
    assert sorted(firsts) == sorted(deltas)
    base, chance = {name: states[3][name] for name in firsts}, torch.Generator().manual_seed(11)
    parents = [{name: state[name] for name in firsts} for state in states[:2]]
    assert_alike(getattr(operators, method)(base, parents, [0.7, 0.4], drop, generator=chance), theirs)


def test_passthrough_is_mergekits(folders, states, tmp_path):
    slices = [(0, 0, 3), (1, 1, 2), (2, 1, 4)]
    theirs = judged(
        tmp_path,
        {
            "merge_method": "passthrough",
            "slices": [{"sources": [{"model": str(folders[i]), "layer_range": [a, b]}]} for i, a, b in slices],
        },
    )  # fmt: skip
    stack = [(i, number) for i, a, b in slices for number in range(a, b)]
    assert_alike(operators.passthrough(states[:3], stack), theirs)


def test_dropping_keeps_the_expectation():
    base, parent = {"w": torch.zeros(200_000)}, {"w": torch.ones(200_000)}
    for drop in (0.2, 0.9):
        chance = torch.Generator().manual_seed(1)
        merged_once = operators.dare_linear(base, [parent], [1.0], drop, generator=chance)["w"]
        assert merged_once.mean() == pytest.approx(1.0, abs=0.03)
        kept = merged_once[merged_once != 0]
        assert torch.allclose(kept, torch.full_like(kept, 1 / (1 - drop)))
        assert len(kept) / len(merged_once) == pytest.approx(1 - drop, abs=0.01)


NUMBERS = st.lists(st.floats(-2, 2, width=32), min_size=6, max_size=6).map(torch.tensor)


@given(st.lists(NUMBERS, min_size=2, max_size=4), st.data())
def test_linear_of_one_parents_copies_is_that_parent(tensors, data):
    shares = [data.draw(st.floats(0.01, 3)) for _ in tensors]
    copies = [{"w": tensors[0]} for _ in tensors]
    torch.testing.assert_close(operators.linear(copies, shares)["w"], tensors[0])


@given(NUMBERS, NUMBERS)
def test_slerp_ends_at_its_parents_and_turns_back_to_front(x, y):
    parents = [{"w": x}, {"w": y}]
    torch.testing.assert_close(operators.slerp(parents, 0.0)["w"], x, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(operators.slerp(parents, 1.0)["w"], y, atol=1e-4, rtol=1e-3)
    there, back = operators.slerp(parents, 0.3)["w"], operators.slerp(parents[::-1], 0.7)["w"]
    torch.testing.assert_close(there, back, atol=1e-4, rtol=1e-3)


@given(NUMBERS, st.floats(0.05, 1))
def test_trimming_keeps_the_largest(x, density):
    kept = operators.trim(x, density)
    stays = kept != 0
    assert torch.equal(kept[stays], x[stays])
    if stays.any() and (~stays).any():
        assert x[stays].abs().min() >= x[~stays].abs().max()
    assert int((x.abs() >= x[stays].abs().min()).sum() if stays.any() else 0) >= min(1, int((x != 0).sum()))


@given(st.lists(NUMBERS, min_size=1, max_size=4))
def test_elected_means_have_the_sign_of_the_sum(vectors):
    merged_once = operators.elected_mean(vectors, [1.0] * len(vectors))
    total = torch.stack(vectors).sum(0)
    assert not (merged_once * total < 0).any()
    assert (merged_once.abs() <= torch.stack(vectors).abs().amax(0) + 1e-6).all()


def test_nothing_is_done_to_the_parents_and_their_type_is_kept(states):
    parents = [{name: x.bfloat16() for name, x in state.items()} for state in states]
    before = [{name: x.clone() for name, x in state.items()} for state in parents]
    chance = torch.Generator().manual_seed(0)
    for made in (
        operators.linear(parents[:3], [1, 2, 3]), operators.slerp(parents[:2], 0.4),
        operators.task_arithmetic(parents[3], parents[:3], [1, 1, 1]),
        operators.ties(parents[3], parents[:3], [1, 1, 1], 0.5),
        operators.dare_ties(parents[3], parents[:3], [1, 1, 1], 0.5, generator=chance),
        operators.passthrough(parents[:3], [(0, 0), (1, 1)]),
    ):  # fmt: skip
        for x in made.values():
            assert x.dtype == torch.bfloat16
            x.zero_()
    for old, parent in zip(before, parents, strict=True):
        assert all(torch.equal(x, parent[name]) for name, x in old.items())


def test_models_of_unlike_shapes_are_refused(states):
    with pytest.raises(ValueError, match="different shapes"):
        operators.linear([states[0], {"w": torch.zeros(2)}], [1, 1])
    with pytest.raises(ValueError, match="of two parents"):
        operators.slerp(states[:3], 0.5)
    with pytest.raises(ValueError, match="no layer 4"):
        operators.passthrough(states[:1], [(0, 4)])


@pytest.mark.parametrize("operator", ["linear", "slerp", "ties", "dare_ties", "passthrough"])
def test_folders_are_merged_at_customary_values(folders, operator):
    learner = merged(folders[:2], operator, ancestor=folders[3])
    assert depth(learner) == SHAPE.layers
    recipe = usual(operator, 2, SHAPE.layers)
    assert recipe["operator"] == operator
    if operator == "linear":
        ours = load(folders[0]).model.model.norm.weight + load(folders[1]).model.model.norm.weight  # type: ignore
        torch.testing.assert_close(learner.model.model.norm.weight, ours / 2)  # type: ignore[union-attr]


def test_a_stack_of_layers_is_saved_as_deep_as_it_is(folders, states, tmp_path):
    stack = [[0, 0], [1, 1], [1, 1], [0, 2], [2, 3], [0, 3]]
    merged(folders[:3], {"operator": "passthrough", "layers": stack}).save(tmp_path)
    again = load(tmp_path)
    assert depth(again) == 6 and again.shape and again.shape.layers == 6
    kept = load_file(tmp_path / "model.safetensors")
    for number, (parent, taken) in enumerate(stack):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(kept[name.format(number)], states[parent][name.format(taken)])
    assert again.model(torch.zeros(1, 3, dtype=torch.long)).isfinite().all()
