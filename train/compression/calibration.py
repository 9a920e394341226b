"""What a model's matrices see: the inputs' Hessians and the tokens' frequencies, on text that it is trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.compression.codecs import Known
from train.data.packing import Batch
from train.loop import to_tensors

READ = 0.1


@dataclass(frozen=True)
class Place:
    """A tensor of the model's files in the model: its parameter, and what calibration knows of it."""

    parameter: Tensor
    known: Known


@torch.no_grad()
def calibrated(model: nn.Module, batches: Sequence[Batch], device: torch.device) -> dict[str, Place]:
    """Every matrix of a linear layer or an embedding, by its parameter's name; a tied one once.

    A linear layer's Hessian (C, C) is the mean of x x^T over the inputs x of the batches' real tokens. An embedding's
    rows count as often as their tokens are read. Where it is also the output matrix it has that layer's Hessian, with
    `READ` of the mean diagonal added, because every direction of its rows is read as well.
    """
    modules = list(_matrices(model))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    sums: dict[int, Tensor] = {}
    wanted: list[Tensor] = []

    def seen(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        key = id(module.weight)
        x = inputs[0].flatten(0, -2)  # (B T, C)
        if len(x) == len(wanted[0]):  # an expert sees some tokens only, and they are real ones for the most part
            x = x[wanted[0]]
        x = x.float()
        sums[key] = sums.get(key, torch.zeros(x.shape[1], x.shape[1], device=x.device)) + x.T @ x

    handles = [module.register_forward_pre_hook(seen) for module in modules if isinstance(module, nn.Linear)]
    tokens, counts = 0, torch.zeros(0, device=device)
    try:
        model.eval()
        for each in batches:
            ids, _, documents = to_tensors(each, device)
            wanted[:] = [documents.flatten() > 0]
            model(ids, documents)
            tokens += int(wanted[0].sum())
            read = torch.bincount(ids.flatten()[wanted[0]]).float()
            longer = max(len(read), len(counts))
            counts = _padded(counts, longer) + _padded(read, longer)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, Place] = {}
    for module in modules:
        key = id(module.weight)
        hessian = sums[key] / max(1, tokens) if key in sums else None
        rows = None
        if isinstance(module, nn.Embedding):
            # Every row counts a little: a token that this text lacks may be in another.
            smooth = _padded(counts, len(module.weight))[: len(module.weight)] + 1
            rows = smooth / smooth.mean()
            if hessian is not None:
                hessian = hessian + READ * hessian.diagonal().mean() * torch.eye(len(hessian), device=hessian.device)
        found.setdefault(names[key], Place(module.weight, Known(hessian, rows)))
    return found


def _matrices(model: nn.Module) -> Iterator[nn.Linear | nn.Embedding]:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding) and module.weight.dim() == 2:
            yield module


def _padded(values: Tensor, size: int) -> Tensor:
    return nn.functional.pad(values, (0, size - len(values)))
