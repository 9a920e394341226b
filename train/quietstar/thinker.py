"""A model that thinks at many positions at once, and the head that mixes what it expects with and without (2403.09629).

Formulas, for a thought at position p of a text x and the n-th token after it (n = 1 ... A):
    b_n = logits of x_{p+n} from the text alone, t_n = from the text up to p, the thought, and x_{p+1} ... x_{p+n-1}
    w_n = sigmoid(MLP([h of b_n; h of t_n])), mixed_n = w_n t_n + (1 - w_n) b_n
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from train.model.generate import draw
from train.model.llama import same_document
from train.quietstar.blocks import Pondered, Thoughts, arrange, seen_from

SHY = -3.0  # the mixing head's first bias: a thought begins with 5 % of the say


class MixingHead(nn.Module):
    """(..., W) hidden states without and with a thought -> (...) its weight, 0 to 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(2 * width, width), nn.Linear(width, 1)
        nn.init.zeros_(self.outer.weight)
        nn.init.constant_(self.outer.bias, SHY)

    def forward(self, without: Tensor, with_thought: Tensor) -> Tensor:
        """See the class."""
        return self.outer(self.inner(torch.cat((without, with_thought), dim=-1)).relu()).squeeze(-1).sigmoid()


@dataclass(frozen=True)
class Considered:
    """What a model expects after M thoughts in each of B rows, in nats.

    `plain`, `thought` and `mixed` (B, M, A) are log-likelihoods of the A tokens after each thought: from the text
    alone, through the thought alone, and of both mixed. `known` (B, M, A) says which tokens there are, `weight`
    (B, M, A) the head's say, `said` (B, M) the log-probability of the thought and its end mark.
    """

    plain: Tensor
    thought: Tensor
    mixed: Tensor
    known: Tensor
    weight: Tensor
    said: Tensor


class Thinker(nn.Module):
    """A model, its mixing head, and the rows of `curve`, measured at each step: what a checkpoint has."""

    curve: Tensor

    def __init__(
        self, model: Any, think: int, thought: int, banned: tuple[int, ...], steps: int, measures: int
    ) -> None:
        super().__init__()
        self.model, self.think, self.thought, self.banned = model, think, thought, list(banned)
        self.head = MixingHead(model.lm_head.weight.shape[1])
        self.register_buffer("curve", torch.full((steps, measures), torch.nan))

    def forward(
        self, tokens: Tensor, documents: Tensor, pondered: Pondered | None = None
    ) -> tuple[Tensor, Considered | None]:
        """(B, T) -> the text's logits (B, T, V), and what the thoughts of other rows do.

        Both at once, because data parallel workers exchange gradients of all parameters at every pass.
        """
        hidden = self.model.hidden(tokens, same_document(documents))
        logits = self.model.lm_head(hidden)
        if pondered is not None:
            return logits, self.consider(pondered)
        return logits + 0.0 * self.head(hidden[:, :1], hidden[:, :1]).sum(), None

    def consider(self, given: Pondered) -> Considered:
        """What the thoughts do to the tokens after them."""
        length, count = given.tokens.shape[1], given.thoughts.ids.shape[1]
        blocks = arrange(given, self.think, self.thought)
        hidden = self.model.hidden(blocks.tokens, blocks.mask, blocks.positions)  # (B, N, W)
        row, inside = hidden[:, :length], hidden[:, length:].unflatten(1, (count, -1))  # (B, T, W), (B, M, C, W)
        return self._considered(row, inside, given.thoughts, blocks.future, blocks.known)

    def _considered(self, row: Tensor, inside: Tensor, thoughts: Thoughts, future: Tensor, known: Tensor) -> Considered:
        (count, room), ahead = thoughts.ids.shape[1:], future.shape[-1]
        where = thoughts.at[..., None] + torch.arange(ahead, device=row.device)  # (B, M, A): where x_{p+n} is expected
        where = where.clamp(max=row.shape[1] - 1).flatten(1)[..., None]
        shape = (count, ahead)
        plain_hidden = row.gather(1, where.expand(-1, -1, row.shape[-1])).unflatten(1, shape)  # (B, M, A, W)
        plain = self.model.lm_head(plain_hidden).float()  # (B, M, A, V)
        after = inside[:, :, room + 1 : room + 1 + ahead]
        through = self.model.lm_head(after).float()
        weight = self.head(plain_hidden, after).float()
        mixed = weight[..., None] * through + (1 - weight[..., None]) * plain
        said = self._said(inside[:, :, : room + 1], thoughts)
        return Considered(
            likelihood(plain, future), likelihood(through, future), likelihood(mixed, future), known, weight, said
        )

    def _said(self, inside: Tensor, thoughts: Thoughts) -> Tensor:
        ids, lengths = thoughts.ids, thoughts.lengths
        step = torch.arange(ids.shape[-1] + 1, device=ids.device)
        last = step == lengths[..., None]
        # (B, M, k + 1): the thought's tokens, then its end mark.
        wanted = torch.where(last, self.thought, nn.functional.pad(ids, (0, 1), value=self.thought))
        logits = self._bare_of_marks(self.model.lm_head(inside).float())
        return likelihood(logits, wanted).where(step <= lengths[..., None], 0.0).sum(-1)

    def _bare_of_marks(self, logits: Tensor) -> Tensor:
        out = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        out[self.banned] = True
        return logits.masked_fill(out, -torch.inf)

    @torch.no_grad()
    def ponder(
        self, tokens: Tensor, documents: Tensor, at: Tensor, room: int, temperature: float,
        generator: torch.Generator | None = None,
    ) -> Thoughts:  # fmt: skip
        """Draw a thought of at most `room` tokens at each of the positions `at` (B, M), all of them side by side."""
        rows, count = at.shape
        past: Any = self.model.past()
        self.model.hidden(tokens, same_document(documents), None, past)
        before, alone = seen_from(documents, at), torch.eye(count, dtype=torch.bool, device=at.device)
        current = torch.full_like(at, self.think)
        ids = torch.full((rows, count, room), self.thought, device=at.device)
        lengths = torch.full_like(at, room)
        for step in range(room):
            mask = torch.cat((before, alone.repeat(1, step + 1).expand(rows, -1, -1)), dim=-1)[:, None]
            hidden = self.model.hidden(current, mask, at + 1 + step, past)  # (B, M, W)
            logits = self._bare_of_marks(self.model.lm_head(hidden).float())
            current = draw(logits.flatten(0, 1), temperature, generator).view_as(at)
            ended = (current == self.thought) & (lengths == room)
            lengths = torch.where(ended, step, lengths)
            ids[..., step] = current
            if (lengths < room).all():
                break
        return Thoughts(at, ids, lengths)


def likelihood(logits: Tensor, wanted: Tensor) -> Tensor:
    """(..., V) logits, (...) ids -> (...) log-probabilities."""
    return logits.log_softmax(-1).gather(-1, wanted[..., None]).squeeze(-1)
