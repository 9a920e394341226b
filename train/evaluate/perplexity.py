"""How well a model predicts text that it never trained on."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from train.data.packing import IGNORED, Batch
from train.loop import autocast, to_tensors


@torch.no_grad()
def held_out_loss(
    model: nn.Module, batches: Sequence[Batch], precision: str = "bf16", device: torch.device | None = None
) -> tuple[float, float]:
    """Mean nats per target token over all batches, and the share (0 to 1) of targets that the model ranks first."""
    device = device or torch.device("cpu")
    nats, right, count = 0.0, 0, 0
    was_training = model.training
    model.eval()
    for batch in batches:
        tokens, targets, documents = to_tensors(batch, device)
        with autocast(precision, device):
            logits = model(tokens, documents).float().flatten(0, 1)  # (B * T, V)
        flat = targets.flatten()
        nats += F.cross_entropy(logits, flat, ignore_index=IGNORED, reduction="sum").item()
        right += int((logits.argmax(-1) == flat).sum())  # an ignored target is negative and never equal
        count += int((flat != IGNORED).sum())
    model.train(was_training)
    if not count:
        raise ValueError("there is no held-out text")
    return nats / count, right / count


def perplexity(loss: float) -> float:
    """e to the loss: among how many tokens the model hesitates."""
    return math.exp(min(loss, 700.0))
