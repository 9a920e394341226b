"""What bitnet's workers do: the parent's layers made ternary, trained so, exported, packed and measured."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from train.bitnet.distillation import Distillation
from train.bitnet.linear import effective, layers, set_lam, ternary
from train.bitnet.packing import read_packed, ternary_bytes, write_packed
from train.data.feed import Feed
from train.data.packing import Batch
from train.data.prepared import texts
from train.evaluate.perplexity import held_out_batches, held_out_loss, perplexity
from train.model.checkpoint import publish
from train.model.learner import load
from train.phases.phase import Work
from train.resumable import measured, train

if TYPE_CHECKING:
    from train.phases.bitnet import Bitnet

PACKED = "packed.safetensors"


def quantise(phase: "Bitnet", work: Work) -> dict[str, float]:
    """Leaves the ternary model in `work.output` and its packed weights in `work.folder`."""
    config, corpus = phase.config, texts(work.data)
    assert work.base is not None
    torch.manual_seed(config.seed)
    learner, parent = load(work.base), load(work.base)
    ternary(learner.model)
    context = min(config.context_length, learner.context)
    documents = (*corpus.training, *(replace(document, source="replay") for document in learner.replay))
    batches = Feed(learner, work, documents, config.batch_size, context).batches(config.mix, config.seed)
    rows = held_out_batches(learner, corpus.held_out, config.held_out_tokens, context)

    def evaluate(model: nn.Module) -> tuple[float, float]:
        return held_out_loss(set_lam(model, 1.0), rows, config.precision, work.device)

    objective = Distillation(
        parent.model, steps=config.max_steps, lambda_share=config.lambda_share, alpha=config.alpha,
        temperature=config.temperature, precision=config.precision, device=work.device,
    )  # fmt: skip
    progress = train(work, config, learner.model, batches, evaluate=evaluate, objective=objective)
    set_lam(learner.model, 1.0)
    found = measured(progress)
    if work.rank == 0:
        publish(work.output, learner.save)
        # Measured before the first step, with lam 1: what rounding alone makes of the parent.
        found["held_out_loss_rounded"] = found.pop("held_out_loss_before")
        found["perplexity_rounded"] = found.pop("perplexity_before")
        found["accuracy_rounded"] = found.pop("accuracy_before")
        found |= compared(parent.model, learner.model.to(work.device), rows, work)
        found |= sizes(learner.model, work.base, work.folder / PACKED)
    return found


def compared(parent: nn.Module, model: nn.Module, rows: list[Batch], work: Work) -> dict[str, float]:
    """Held-out loss, nats per token in float32: of the parent, of the model, and of it with unrounded activations.

    The last is what vLLM serves.
    """
    before, accuracy = held_out_loss(parent, rows, "fp32", work.device)
    after, _ = held_out_loss(model, rows, "fp32", work.device)
    for _, layer in layers(model):
        layer.activations = False
    served, _ = held_out_loss(model, rows, "fp32", work.device)
    for _, layer in layers(model):
        layer.activations = True
    return {
        "held_out_loss_before": before, "perplexity_before": perplexity(before), "accuracy_before": accuracy,
        "perplexity_ratio": perplexity(after - before), "held_out_loss_as_served": served,
        "activations_cost": after - served,
    }  # fmt: skip


def sizes(model: nn.Module, parent: Path, path: Path) -> dict[str, float]:
    """Write the packed file at `path`; what it holds, in bytes and bits per weight, against the parent's weights."""
    write_packed(model, path)
    begun = time.perf_counter()
    read_packed(path)
    seconds = time.perf_counter() - begun
    weights = effective(model)
    count = sum(tensor.numel() for tensor in weights.values())
    whole = sum(parameter.numel() for parameter in model.parameters())
    zeros = sum(int((tensor == 0).sum()) for tensor in weights.values())
    own, size = ternary_bytes(path), path.stat().st_size
    files = list(parent.glob("*.safetensors")) or list(parent.glob("*.bin"))
    before = sum(file.stat().st_size for file in files)
    return {
        "ternary_weights": float(count), "ternary_share": count / whole, "zeros_share": zeros / count,
        "bits_per_ternary_weight": 8 * own / count, "bits_per_weight": 8 * size / whole,
        "packed_bytes": float(size), "weights_bytes_before": float(before), "size_ratio": before / size,
        "ternary_size_ratio": 4 * count / own, "unpack_seconds": seconds,
    }  # fmt: skip
