"""What is minimised: next tokens of the text, next tokens after thoughts, and REINFORCE on what a thought gained.

For thoughts j = 1 ... S at one position, with A true tokens after it:
    reward r_j = sum over n of log p(x_{p+n} | thought j),    advantage a_j = r_j - mean over j of r_j
    loss = NLL(text) + v * (NLL(mixed) - u * mean of max(a_j, 0) * log p(thought j) / k)
Negative advantages are left out, as in arXiv:2403.09629. Two deviations. The reward is what the thought alone expects,
not the mixture, because a server that generates thoughts as tokens has no mixing head. And v is far below 1: two dozen
thoughts a step are noise beside a row of text.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from train.quietstar.blocks import Pondered
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
    reinforce: float  # u
    weight: float  # v

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


def of_thoughts(found: Considered, wanted: Wanted) -> tuple[Tensor, Tensor]:
    """The loss of the thoughts, and their positive advantages (B, M) in nats."""
    nll = -(found.mixed * found.known).sum() / found.known.sum().clamp(min=1)
    reward = (found.thought * found.known).sum(-1).detach().unflatten(1, (-1, wanted.thoughts))
    advantage = (reward - reward.mean(-1, keepdim=True)).clamp(min=0).flatten(1)
    reinforce = -(advantage * found.said).mean() / wanted.thought_tokens
    return wanted.weight * (nll + wanted.reinforce * reinforce), advantage


def pondered(thinker: Thinker, tokens: Tensor, documents: Tensor, assistant: int, wanted: Wanted) -> Pondered:
    """Rows (B, T) with thoughts drawn at random places of theirs."""
    last = tokens.shape[1] - wanted.block - 1
    at = places(tokens, documents, assistant, thinker.think, wanted, last)
    thoughts = thinker.ponder(tokens, documents, at, wanted.thought_tokens, wanted.temperature)
    return Pondered(tokens, documents, thoughts, wanted.ahead)


def learnt(found: Considered, given: Pondered, assistant: int, wanted: Wanted) -> tuple[Tensor, Tensor]:
    """The thoughts' loss, and this step's `MEASURES`."""
    loss, advantage = of_thoughts(found, wanted)
    marks = given.tokens.gather(1, given.thoughts.at) == assistant
    known = found.known.sum(-1).clamp(min=1)
    gain = ((found.thought - found.plain) * found.known).sum(-1) / known  # (B, M)
    measured = (
        given.thoughts.lengths.float().mean(), gain[marks].mean(), gain[~marks].mean(),
        found.weight[found.known].mean(), advantage.mean(),
    )  # fmt: skip
    return loss, torch.stack([each.detach() for each in measured])
