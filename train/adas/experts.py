"""Singular-value fine-tuning of Transformer-squared (arXiv:2501.06252): experts that only scale singular values.

Each linear layer's W = U diag(S) V^T (out, in) becomes U diag(S z) V^T, where z (r,), r = min(out, in), is all that an
expert has for the layer. Experts are mixed by weights alpha as z = 1 + sum of alpha_k (z_k - 1); the paper mixes
sum of alpha_k z_k, which is the same once the base is an expert with z = 1 and the rest of the weight. Scales stay
above `LEAST`, so that a mixture can be divided out again (`rebased`). The scaling is a parametrisation of `weight`:
layers that quantise their weight see the scaled one.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import parametrize

from train.model.learner import Learner

EXPERTS = "experts.svf"  # safetensors; not named so, for vLLM loads every file that is
LEAST = 0.05  # the smallest scale of a singular value

Vectors = dict[str, Tensor]  # of one expert: z (r,) by the layer's name
Mixture = Mapping[str, float]  # weights alpha by the expert's name


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that experts scale: every linear one but the output matrix."""
    head = getattr(model, "lm_head", None)
    return {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear) and each is not head}


def factors(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(out, in) -> U (out, r), S (r,) falling, V^T (r, in), in float32. A pair's common sign does not matter."""
    u, s, vh = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    return u.float(), s.float(), vh.float()


class Scaling(nn.Module):
    """The parametrisation that trains one layer's z, as its offset from 1: at 0 the weight is untouched bit for bit."""

    u: Tensor
    s: Tensor
    vh: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        for name, factor in zip(("u", "s", "vh"), factors(weight), strict=True):
            self.register_buffer(name, factor, persistent=False)
        self.offset = nn.Parameter(torch.zeros_like(self.s))
        self.on = True

    def forward(self, weight: Tensor) -> Tensor:
        """(out, in) -> (out, in)."""
        if not self.on:
            return weight
        with torch.autocast(weight.device.type, enabled=False):
            return weight + (self.u * (self.s * bounded(self.offset))) @ self.vh


def bounded(offset: Tensor) -> Tensor:
    """Offsets of scales that are at least `LEAST`."""
    return offset.clamp(min=LEAST - 1)


def attach(model: nn.Module) -> dict[str, Scaling]:
    """Give every layer a `Scaling` and freeze all else; by the layer's name."""
    model.requires_grad_(False)
    made: dict[str, Scaling] = {}
    for name, layer in linears(model).items():
        made[name] = Scaling(layer.weight).to(layer.weight.device)
        parametrize.register_parametrization(layer, "weight", made[name])
    return made


def detach(model: nn.Module, scalings: Mapping[str, Scaling]) -> Vectors:
    """Take the scalings off again, the weights as they were before; returns z."""
    for name in scalings:
        parametrize.remove_parametrizations(model.get_submodule(name), "weight", leave_parametrized=False)
    model.requires_grad_(True)
    return {name: 1 + bounded(scaling.offset.detach()).cpu() for name, scaling in scalings.items()}


@contextmanager
def off(scalings: Mapping[str, Scaling]) -> Iterator[None]:
    """The model without its scalings."""
    for scaling in scalings.values():
        scaling.on = False
    try:
        yield
    finally:
        for scaling in scalings.values():
            scaling.on = True


def offsets(experts: Mapping[str, Vectors], mixture: Mixture, layer: str) -> Tensor:
    """What a mixture adds to the layer's scales of 1: (r,)."""
    parts = [weight * (experts[name][layer] - 1) for name, weight in mixture.items()]
    return bounded(torch.stack(parts).sum(0))


@dataclass
class Dispatcher:
    """A linear classifier of questions, by the mean of the last hidden states of the model's first pass (W,)."""

    families: list[str]
    weight: Tensor  # (families, W)
    bias: Tensor  # (families,)

    def families_of(self, features: Tensor) -> list[str]:
        """(B, W) -> the likeliest family of each."""
        return [self.families[i] for i in (features @ self.weight.T + self.bias).argmax(-1).tolist()]


@dataclass
class Experts:
    """The experts of a model and who dispatches to them: `experts.svf`."""

    vectors: dict[str, Vectors] = field(default_factory=dict)
    dispatcher: Dispatcher | None = None

    def content(self) -> bytes:
        """The file: `<expert>/<layer>` is z (r,); `dispatcher/weight`, `dispatcher/bias`; names in its metadata."""
        tensors = {f"{name}/{layer}": z for name, z_of in self.vectors.items() for layer, z in z_of.items()}
        told = {"experts": json.dumps(list(self.vectors))}
        if self.dispatcher is not None:
            tensors |= {"dispatcher/weight": self.dispatcher.weight, "dispatcher/bias": self.dispatcher.bias}
            told["families"] = json.dumps(self.dispatcher.families)
        return save({name: tensor.contiguous() for name, tensor in tensors.items()}, told)

    @classmethod
    def read(cls, path: Path) -> "Experts":
        """What `content` gave."""
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        vectors: dict[str, Vectors] = {name: {} for name in json.loads(told["experts"])}
        for name, tensor in tensors.items():
            expert, _, layer = name.partition("/")
            if expert in vectors:
                vectors[expert][layer] = tensor
        dispatcher = None
        if "families" in told:
            dispatcher = Dispatcher(
                json.loads(told["families"]), tensors["dispatcher/weight"], tensors["dispatcher/bias"]
            )
        return cls(vectors, dispatcher)

    def rebased(self, model: nn.Module, mixture: Mixture) -> "Experts":
        """The same experts for the model once `mixture` is merged into it; `model` still has its base's weights.

        The merged weight's singular vectors are the base's in the order of S z*, so z_k becomes z_k / z* in that
        order. Its singular values must differ from one another, as those of trained weights do.
        """
        if not any(mixture.values()):
            return self
        vectors: dict[str, Vectors] = {name: {} for name in self.vectors}
        for layer, linear in linears(model).items():
            merged = 1 + offsets(self.vectors, mixture, layer)
            order = (factors(linear.weight)[1].cpu() * merged).argsort(descending=True)
            for name, z_of in self.vectors.items():
                vectors[name][layer] = ((1 + bounded(z_of[layer] - 1)) / merged)[order]
        return Experts(vectors, self.dispatcher)


class Composer:
    """A model whose experts can be mixed in and out."""

    def __init__(self, learner: Learner, experts: Experts) -> None:
        self.learner, self.experts = learner, experts
        self.base = {name: layer.weight.detach().clone() for name, layer in linears(learner.model).items()}
        self.factors: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.learner.model.parameters()).device

    @torch.no_grad()
    def merge(self, mixture: Mixture) -> None:
        """Set the weights to the base's with that mixture."""
        for name, layer in linears(self.learner.model).items():
            base = self.base[name]
            if not any(mixture.values()):
                layer.weight.copy_(base)
                continue
            if name not in self.factors:
                self.factors[name] = factors(base)
            u, s, vh = self.factors[name]
            layer.weight.copy_(base + (u * (s * offsets(self.experts.vectors, mixture, name).to(s))) @ vh)

    @contextmanager
    def using(self, mixture: Mixture) -> Iterator[None]:
        """The model with that mixture, then with the base's weights again."""
        if not any(mixture.values()):
            yield
            return
        self.merge(mixture)
        try:
            yield
        finally:
            self.merge({})
