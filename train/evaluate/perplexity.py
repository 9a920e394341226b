"""How well a model predicts text that it never trained on."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from train.data.packing import IGNORED, Batch, batch, pack
from train.data.sources import Document
from train.evaluate.quality import Quality
from train.loop import autocast, to_tensors
from train.model.learner import Learner

ROWS_AT_ONCE = 8


@torch.no_grad()
def held_out_loss(
    model: nn.Module, batches: Sequence[Batch], precision: str = "auto", device: torch.device | None = None
) -> tuple[float, float]:
    """Mean nats per target token over all batches, and the share (0 to 1) of targets that the model ranks first."""
    device = device or torch.device("cpu")
    nats, right, count = 0.0, 0, 0
    was_training = model.training
    model.eval()
    for each in batches:
        tokens, targets, documents = to_tensors(each, device)
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


def held_out_batches(learner: Learner, documents: Sequence[Document], most_tokens: int, context: int) -> list[Batch]:
    """Rows of held-out documents, spread evenly over all of them, up to `most_tokens`.

    Which documents are taken depends on their texts alone, never on the model: two models are asked the same.
    """
    chosen = spread(documents, most_tokens)
    rows = pack([np.array(learner.ids(document), dtype=np.int32) for document in chosen], context)
    groups = (rows[i : i + ROWS_AT_ONCE] for i in range(0, len(rows), ROWS_AT_ONCE))
    return [batch(group, context, learner.pad) for group in groups]


def spread(documents: Sequence[Document], most_tokens: int) -> list[Document]:
    """Every n-th document, so many that they hold about `most_tokens` at four bytes each."""
    size = sum(document.size for document in documents)
    every = max(1, round(size / (4 * most_tokens)))
    return list(documents[::every])


def quality(
    learner: Learner, documents: Sequence[Document], most_tokens: int, precision: str = "fp32",
    device: torch.device | None = None,
) -> Quality:  # fmt: skip
    """The model on the held-out documents."""
    batches = held_out_batches(learner, documents, most_tokens, min(learner.context, 512))
    loss, accuracy = held_out_loss(learner.model, batches, precision, device)
    tokens = sum(int((each.targets != IGNORED).sum()) for each in batches)
    size = sum(document.size for document in spread(documents, most_tokens))
    return Quality(
        loss=loss, accuracy=accuracy, tokens=tokens, bits_per_byte=loss * tokens / math.log(2) / max(1, size)
    )


def perplexity(loss: float) -> float:
    """e to the loss: among how many tokens the model hesitates."""
    return math.exp(min(loss, 700.0))
