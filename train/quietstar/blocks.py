"""Many thoughts at once: where each token of a thought stands in a row, and what it may look at. Pure tensors.

After a row of T tokens come M blocks of C = k + 2 + A tokens, each a thought at a position p of the row:
`<|think|>`, up to k tokens of thought, `<|thought|>`, and the A tokens of the row that follow p (teacher forcing).
A block sees its document's tokens up to p and itself, so one pass computes what M passes over
`row[: p + 1] + block` would (the parallel attention mask of arXiv:2403.09629, section 4.2).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from train.model.llama import same_document


@dataclass(frozen=True)
class Thoughts:
    """M thoughts in each of B rows: at positions `at` (B, M), the first `lengths` (B, M) of `ids` (B, M, k)."""

    at: Tensor
    ids: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Pondered:
    """Rows `tokens` and `documents` (B, T) with thoughts, each of which has `ahead` true tokens to tell."""

    tokens: Tensor
    documents: Tensor
    thoughts: Thoughts
    ahead: int


@dataclass(frozen=True)
class Blocks:
    """Rows with their blocks behind them: N = T + M * C columns."""

    tokens: Tensor  # (B, N)
    positions: Tensor  # (B, N)
    mask: Tensor  # (B, 1, N, N)
    future: Tensor  # (B, M, A) the tokens after each position
    known: Tensor  # (B, M, A) which of them there are in its document


def arrange(given: Pondered, think: int, thought: int) -> Blocks:
    """The rows with their thoughts; `think` and `thought` are the marks' ids."""
    tokens, documents, thoughts, ahead = given.tokens, given.documents, given.thoughts, given.ahead
    rows, length = tokens.shape
    at, ids, lengths = thoughts.at, thoughts.ids, thoughts.lengths
    count, room = ids.shape[1:]
    device = tokens.device
    future, known = ahead_of(tokens, documents, at, ahead)
    mark = torch.ones_like(at)[..., None]  # (B, M, 1)
    blocks = torch.cat((mark * think, ids, mark * thought, future), dim=-1)  # (B, M, C)
    column = torch.arange(blocks.shape[-1], device=device)
    unused = (column > lengths[..., None]) & (column <= room)  # (B, M, C): beyond the thought's end
    late = column > room  # the end mark and what follows it stand right after the thought
    offset = torch.where(late, column - room + lengths[..., None], column)
    positions = torch.cat(
        (torch.arange(length, device=device).expand(rows, -1), (at[..., None] + 1 + offset).flatten(1)), 1
    )

    own = torch.arange(count, device=device).repeat_interleave(blocks.shape[-1])  # (M * C,) which block a column is of
    step = column.repeat(count)
    within = (own[:, None] == own) & (step[:, None] >= step) & ~unused.flatten(1)[:, None, :]
    within |= torch.eye(len(own), dtype=torch.bool, device=device)  # an unused column has to look somewhere
    before = seen_from(documents, at).repeat_interleave(blocks.shape[-1], dim=1)  # (B, M * C, T)
    nothing = torch.zeros(rows, length, len(own), dtype=torch.bool, device=device)
    row = torch.cat((same_document(documents)[:, 0], nothing), dim=-1)
    mask = torch.cat((row, torch.cat((before, within), dim=-1)), dim=1)[:, None]
    return Blocks(torch.cat((tokens, blocks.flatten(1)), 1), positions, mask, future, known)


def seen_from(documents: Tensor, at: Tensor) -> Tensor:
    """(B, T), (B, M) -> (B, M, T): the tokens of the position's document up to it."""
    column = torch.arange(documents.shape[1], device=documents.device)
    return (documents.gather(1, at)[..., None] == documents[:, None]) & (column <= at[..., None])


def ahead_of(tokens: Tensor, documents: Tensor, at: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
    """The A tokens after each position, and which of them are of its document, both (B, M, A)."""
    where = at[..., None] + 1 + torch.arange(ahead, device=at.device)  # (B, M, A)
    inside = where < tokens.shape[1]
    flat = where.clamp(max=tokens.shape[1] - 1).flatten(1)
    known = inside & (documents.gather(1, flat).view_as(where) == documents.gather(1, at)[..., None])
    return tokens.gather(1, flat).view_as(where), known
