"""What is minimised: next tokens of the text, next tokens after thoughts, and REINFORCE on what a thought gained.

For thoughts j = 1 ... S at one position, with A true tokens after it:
    reward r_j = sum over n of log p(x_{p+n} | thought j),    advantage a_j = r_j - mean over j of r_j
    loss = NLL(text) + NLL(mixed) + NLL(through kept thoughts) - weight * mean of max(a_j, 0) * log p(thought j) / k
Negative advantages are left out, as in arXiv:2403.09629. Two deviations, because a server that generates thoughts as
tokens has no mixing head: the reward is what the thought alone expects, not the mixture, and after assistants' marks
that is trained too, through the thoughts of positive advantage. (Through all of them it taught to answer whatever the
thought had come to: 71 % right sums became 47 %.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from train.loop import bare
from train.quietstar.blocks import Thoughts
from train.quietstar.thinker import Considered, Thinker

# The columns of `Thinker.curve`: nats per token that thoughts gained after assistants' marks and elsewhere (none: nan),
# the mixing head's mean say, mean length, mean positive advantage in nats.
MEASURES = ("thought_tokens", "gain", "gain_elsewhere", "weight", "advantage")


@dataclass(frozen=True)
class Wanted:
    """How to think: `positions` in a row, a share `anywhere` of them (0 to 1), each with `thoughts` drawn thoughts."""

    positions: int
    thoughts: int
    thought_tokens: int
    ahead: int
    anywhere: float
    temperature: float
    weight: float  # of REINFORCE

    @property
    def block(self) -> int:
        """Columns of a thought with what follows it."""
        return 2 + self.thought_tokens + self.ahead


def places(tokens: Tensor, documents: Tensor, assistant: int, think: int, wanted: Wanted, last: int) -> Tensor:
    """Where to think, (B, positions * thoughts): after assistants' marks first, the rest anywhere; drawn at random.

    A place has a token of its document after it that is no thought, and is at most `last`.
    """
    fits = torch.zeros_like(tokens, dtype=torch.bool)
    fits[:, :-1] = (documents[:, :-1] == documents[:, 1:]) & (documents[:, :-1] > 0) & (tokens[:, 1:] != think)
    fits[:, last + 1 :] = False
    marks = fits & (tokens == assistant)
    chance = torch.rand(tokens.shape, device=tokens.device)
    spoken = round(wanted.positions * (1 - wanted.anywhere))
    first = (chance + marks.float() + fits).topk(spoken, dim=1).indices  # marks before others, what fits before all
    fits = fits.scatter(1, first, False)
    rest = (chance + fits).topk(wanted.positions - spoken, dim=1).indices
    return torch.cat((first, rest), dim=1).repeat_interleave(wanted.thoughts, dim=1)


def of_thoughts(found: Considered, marks: Tensor, wanted: Wanted) -> tuple[Tensor, Tensor]:
    """The loss of the thoughts, and their positive advantages (B, M), nats; `marks` (B, M): after assistants' marks."""
    reward = (found.thought * found.known).sum(-1).detach().unflatten(1, (-1, wanted.thoughts))
    advantage = (reward - reward.mean(-1, keepdim=True)).clamp(min=0).flatten(1)
    kept = found.known & (marks & (advantage > 0))[..., None]  # (B, M, A)
    nll = mean(-found.mixed, found.known) + mean(-found.thought, kept)
    return nll - wanted.weight * (advantage * found.said).mean() / wanted.thought_tokens, advantage


def mean(values: Tensor, counted: Tensor) -> Tensor:
    """Of those that count; 0 of none."""
    return (values * counted).sum() / counted.sum().clamp(min=1)


def think_and_learn(
    model: torch.nn.Module, tokens: Tensor, documents: Tensor, assistant: int, wanted: Wanted, last: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T) rows -> their logits, the thoughts' loss, and this step's `MEASURES`."""
    thinker: Thinker = bare(model)
    at = places(tokens, documents, assistant, thinker.think, wanted, last)
    thoughts: Thoughts = thinker.ponder(tokens, documents, at, wanted.thought_tokens, wanted.temperature)
    logits, found = model(tokens, documents, thoughts, wanted.ahead)
    assert found is not None
    marks = tokens.gather(1, at) == assistant
    loss, advantage = of_thoughts(found, marks, wanted)
    known = found.known.sum(-1).clamp(min=1)
    gain = ((found.thought - found.plain) * found.known).sum(-1) / known  # (B, M)
    measured = (
        thoughts.lengths.float().mean(), gain[marks].mean(), gain[~marks].mean(), found.weight[found.known].mean(),
        advantage.mean(),
    )  # fmt: skip
    return logits, loss, torch.stack([each.detach() for each in measured])
