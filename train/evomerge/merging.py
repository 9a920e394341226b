"""From a recipe and the parents' folders to a model. All parents are held in memory."""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from train.causes import Cause, Failed
from train.data.sources import Document, read_documents
from train.evomerge import operators
from train.evomerge.genome import OPERATORS, Space, boundaries
from train.evomerge.operators import State
from train.model.checkpoint import LATENTS
from train.model.learner import REPLAY, Learner, load, ours
from train.model.tokenizer import Tokenizer

Recipe = Mapping[str, Any]  # see `train.evomerge.genome.Space.recipe`


class Unfilled(TorchFunctionMode):
    """Modules made inside have whatever weights: drawing random ones takes longer than reading those of a file."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `TorchFunctionMode`."""
        given = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return given.get("tensor", args[0] if args else None)
        return func(*args, **given)


def opened(folder: Path) -> Learner:
    """The model in the folder. Raises `Failed`."""
    # Of a folder of ours it is known that its file has all weights.
    with Unfilled() if (folder / "config.json").exists() and ours(folder) else nullcontext():
        return load(folder)


@dataclass
class Parent:
    """A model as far as merging needs it. The weights of a folder of ours are its file's, mapped and not copied."""

    weights: dict[str, Tensor]
    tokenizer_digest: str
    replay: list[Document]


def parent(folder: Path) -> Parent:
    """The model in the folder. Raises `Failed`."""
    if not (folder / "config.json").exists() or not ours(folder) or (folder / LATENTS).exists():
        return of(opened(folder))
    try:
        return Parent(load_file(folder / "model.safetensors"), digest(Tokenizer.load(folder)), replayed(folder))
    except (OSError, SafetensorError, ValueError) as error:
        raise Failed(f"the model in {folder} cannot be loaded: {error}", Cause.BASE_MODEL) from error


def of(learner: Learner) -> Parent:
    """The learner as a parent."""
    return Parent(weights(learner), learner.tokenizer_digest, learner.replay)


def replayed(folder: Path) -> list[Document]:
    """What the folder's model replays."""
    return list(read_documents(folder / REPLAY)) if (folder / REPLAY).exists() else []


def digest(tokenizer: Tokenizer) -> str:
    """See `Learner.tokenizer_digest`."""
    return hashlib.sha256(tokenizer.bpe.to_str().encode()).hexdigest()


def family(folders: Sequence[Path]) -> tuple[Learner, list[Parent]]:
    """The first model, and all of them as parents. Raises `Failed` unless they differ in nothing but their weights."""
    learner = opened(folders[0])
    parents = [of(learner), *(parent(folder) for folder in folders[1:])]
    first = {name: tensor.shape for name, tensor in parents[0].weights.items()}
    for folder, each in zip(folders, parents, strict=True):
        if {name: tensor.shape for name, tensor in each.weights.items()} != first:
            raise Failed(f"the model in {folder} has another shape than the first parent", Cause.BASE_MODEL)
        if each.tokenizer_digest != parents[0].tokenizer_digest:
            raise Failed(f"the model in {folder} has another tokenizer than the first parent", Cause.BASE_MODEL)
    return learner, parents


def weights(learner: Learner) -> dict[str, Tensor]:
    """Every parameter by name, a tied one once; of a ternary layer the latent weights."""
    return {name: parameter.detach() for name, parameter in learner.model.named_parameters()}


def depth(learner: Learner) -> int:
    """How many layers the model has."""
    return len(layers_of(learner))


def mean(parents: Sequence[State]) -> dict[str, Tensor]:
    """What task vectors start from where the parents' common ancestor is not known."""
    return operators.linear(parents, [1.0] * len(parents))


def starts(recipe: Recipe) -> bool:
    """Whether the recipe is of task vectors, which start somewhere."""
    return recipe["operator"] not in ("linear", "slerp", "passthrough")


def merge(recipe: Recipe, parents: Sequence[State], ancestor: State) -> dict[str, Tensor]:
    """The tensors that the recipe makes."""
    name = recipe["operator"]
    if name == "passthrough":
        return operators.passthrough(parents, [(parent, number) for parent, number in recipe["layers"]])
    rows = recipe["t"] if name == "slerp" else recipe["weights"]
    group = grouping(parents[0], len(rows) - 1)
    if name == "slerp":
        return operators.slerp([parents[i] for i in recipe["parents"]], lambda tensor: rows[group(tensor)])
    shares = [lambda tensor, i=i: rows[group(tensor)][i] for i in range(len(parents))]
    if name == "linear":
        return operators.linear(parents, shares)
    given = (ancestor, parents, shares)
    if name == "task_arithmetic":
        return operators.task_arithmetic(*given, recipe["scale"])
    if name == "ties":
        return operators.ties(*given, recipe["density"], recipe["scale"])
    dare = {"dare_linear": operators.dare_linear, "dare_ties": operators.dare_ties}[name]
    return dare(*given, recipe["drop"], recipe["scale"], generator=torch.Generator().manual_seed(recipe["seed"]))


def grouping(state: State, groups: int) -> Callable[[str], int]:
    """The group of a tensor: that of its layer, and the last for one that belongs to no layer."""
    count = 1 + max((number for name in state if (number := operators.layer(name)) is not None), default=-1)
    of_layer = boundaries(count, groups)

    def group(name: str) -> int:
        number = operators.layer(name)
        return groups if number is None else of_layer[number]

    return group


@torch.no_grad()
def filled(learner: Learner, state: State) -> Learner:
    """The learner's own model with these weights; another with as many layers as they have where that differs."""
    count = 1 + max((number for name in state if (number := operators.layer(name)) is not None), default=-1)
    if count != depth(learner):
        learner = restacked(learner, count)
    for name, parameter in learner.model.named_parameters():
        parameter.data = state[name].to(parameter)  # its own memory, so nothing is copied once more
    return learner


def restacked(learner: Learner, count: int) -> Learner:
    """A copy with `count` layers, which are copies of its own in turn: their weights are for the caller to set."""
    model = copy.deepcopy(learner.model)
    old = layers_of(learner)
    new = nn.ModuleList(copy.deepcopy(old[number % len(old)]) for number in range(count))
    made = replace(learner, model=model, shape=learner.shape and replace(learner.shape, layers=count))
    body(made).layers = new
    inner: Any = getattr(model, "inner", None)
    if inner is not None:  # transformers: its cache goes by each attention's own number, its configuration is saved
        for number, each in enumerate(new):
            if hasattr(each, "self_attn") and hasattr(each.self_attn, "layer_idx"):
                each.self_attn.layer_idx = number  # type: ignore[union-attr]
        inner.config.num_hidden_layers = count
        kinds = getattr(inner.config, "layer_types", None)
        if kinds:
            inner.config.layer_types = [kinds[number % len(kinds)] for number in range(count)]
    return made


def body(learner: Learner) -> Any:
    """The module that has the layers."""
    inner: Any = getattr(learner.model, "inner", None)
    return learner.model.model if inner is None else inner.get_decoder()


def layers_of(learner: Learner) -> nn.ModuleList:
    """The layers."""
    return body(learner).layers


def usual(operator: str, parents: int, layers: int) -> dict[str, Any]:
    """The operator's recipe at customary values: all parents alike."""
    if operator not in OPERATORS:
        raise ValueError(f"no operator {operator}")
    space = Space(parents, layers, groups=1)
    return space.recipe(space.genome(operator), seed=0)


def merged(folders: Sequence[Path], recipe: Recipe | str, ancestor: Path | None = None) -> Learner:
    """The models of the folders made one, by a recipe or by an operator at customary values; nothing is searched.

    Task vectors start from `ancestor`, or from the parents' mean. Raises `Failed` for unlike models.
    """
    learner, found = family([*folders, *([ancestor] if ancestor else [])])
    states = [each.weights for each in found]
    parents = states[: len(folders)]
    if isinstance(recipe, str):
        recipe = usual(recipe, len(folders), depth(learner))
    made = merge(recipe, parents, states[-1] if ancestor else mean(parents) if starts(recipe) else {})
    learner.replay = remembered(found[: len(folders)])
    return filled(learner, made)


def remembered(parents: Sequence[Parent]) -> list[Document]:
    """What any of the parents replays, each document once."""
    return list({document.fingerprint: document for each in parents for document in each.replay}.values())
