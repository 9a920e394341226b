"""What is minimised: the KL divergence from the prompted teacher to the unprompted student (arXiv:2409.13697).

    KL(P(. | u, x, y<t) || P'(. | x, y<t)),   averaged over the positions t of what the assistant wrote

Teacher and student are one model with the low-rank deltas off and on. Their output matrix is the same, so the teacher's
distributions are kept as its last hidden states: W numbers a position where the vocabulary would take V.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.baking.lessons import Book, Lesson
from train.baking.lowrank import without
from train.data.packing import Batch
from train.loop import Objective, autocast, bare
from train.model.llama import same_document

AT_ONCE = 32  # lessons that a teacher reads side by side


class Chosen(NamedTuple):
    """Positions that count: rows and columns (N,) of a batch, and how much each counts (N,)."""

    rows: Tensor
    columns: Tensor
    weights: Tensor


class Student(nn.Module):
    """A model under training: its loss at chosen positions, so that data parallel workers can wrap it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(
        self, tokens: Tensor, documents: Tensor, chosen: Chosen, *, targets: Tensor | None = None,
        taught: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Mean nats over N chosen positions of tokens (B, T), by their weights.

        The cross entropy of `targets` (N,), or the divergence from the teacher's hidden states `taught` (N, W).
        """
        inner: Any = self.inner
        hidden = inner.hidden(tokens, same_document(documents))[chosen.rows, chosen.columns]  # (N, W)
        logits = inner.lm_head(hidden).float()  # (N, V)
        if targets is not None:
            nats = F.cross_entropy(logits, targets, reduction="none")
        else:
            assert taught is not None
            with torch.no_grad():
                teacher = inner.lm_head(taught.to(hidden.dtype)).float()
            nats = divergence(teacher, logits)
        return (chosen.weights * nats).sum() / chosen.weights.sum()


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """(N, V) logits of both -> (N,) KL(teacher || student) in nats."""
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none").sum(-1)


@torch.no_grad()
def states(model: Any, lessons: Sequence[Lesson], precision: str, device: torch.device) -> list[Tensor]:
    """Of every lesson, the hidden states (k, W) in half precision that the view `taught` has where it counts."""
    found: list[Tensor] = []
    for start in range(0, len(lessons), AT_ONCE):
        some = lessons[start : start + AT_ONCE]
        tokens = np.zeros((len(some), max(len(lesson.taught) for lesson in some)), dtype=np.int64)
        for row, lesson in enumerate(some):
            tokens[row, : len(lesson.taught)] = (
                lesson.taught
            )  # what is padded comes after, where nobody looks back from
        with autocast(precision, device):
            hidden = model.hidden(torch.from_numpy(tokens).to(device))  # (B, T, W)
        found += [hidden[row, lesson.taught_at].half() for row, lesson in enumerate(some)]
    return found


def selected(found: Sequence[tuple[int, int, Lesson]], device: torch.device) -> Chosen:
    """All positions that count in a batch, in the order of `found`."""
    rows = np.concatenate([np.full(len(lesson.at), row) for row, _, lesson in found])
    columns = np.concatenate([lesson.at + start for _, start, lesson in found])
    weights = np.concatenate([np.full(len(lesson.at), lesson.weight, dtype=np.float32) for _, _, lesson in found])
    return Chosen(*(torch.from_numpy(array).to(device) for array in (rows, columns, weights)))


def supervised(book: Book, precision: str, device: torch.device) -> Objective:
    """The next token where it counts."""

    def objective(model: nn.Module, batch: Batch, step: int) -> Tensor:
        chosen = selected(book.found(batch), device)
        tokens, targets, documents = (torch.from_numpy(array).to(device) for array in batch)
        with autocast(precision, device):
            return model(tokens, documents, chosen, targets=targets[chosen.rows, chosen.columns])

    return objective


def baked(book: Book, precision: str, device: torch.device) -> Objective:
    """The teacher's distribution where it counts. Every lesson's teacher is asked once."""
    kept: dict[bytes, Tensor] = {}

    def objective(model: nn.Module, batch: Batch, step: int) -> Tensor:
        found = book.found(batch)
        new = list({lesson.key: lesson for _, _, lesson in found if lesson.key not in kept}.values())
        inner = bare(model).inner
        with without(inner):
            kept.update(zip((lesson.key for lesson in new), states(inner, new, precision, device), strict=True))
        tokens, _, documents = (torch.from_numpy(array).to(device) for array in batch)
        taught = torch.cat([kept[lesson.key] for _, _, lesson in found])
        with autocast(precision, device):
            return model(tokens, documents, selected(found, device), taught=taught)

    return objective
