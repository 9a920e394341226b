"""Text from a model, many prompts at once: greedy or sampled. For measuring; users are served by vLLM."""

from collections.abc import Sequence

import torch
from torch import Tensor

from train.bitnet.linear import settled
from train.model.learner import Learner


@torch.no_grad()
def generate(
    learner: Learner, prompts: Sequence[Sequence[int]], max_tokens: int, *, stop: Sequence[int],
    temperature: float = 0.0, generator: torch.Generator | None = None, banned: Sequence[int] = (),
) -> list[list[int]]:  # fmt: skip
    """What follows each prompt, up to `max_tokens` ids and without the one of `stop` that ended it.

    `temperature` 0 is greedy, else `generator` draws. A reply ends where the model's context does; `banned` ids are
    never drawn. Prompts are cut at their beginning where they leave no room.
    """
    model, device = learner.model, next(learner.model.parameters()).device
    room = learner.context - max_tokens
    cut = [list(prompt[-room:]) if room > 0 else list(prompt[-1:]) for prompt in prompts]
    longest = max(len(prompt) for prompt in cut)
    tokens = torch.tensor([[learner.pad] * (longest - len(p)) + p for p in cut], device=device)  # (B, T)
    seen = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in cut], device=device).bool()
    past = model.past()  # type: ignore[operator]
    ends = torch.tensor(list(stop), device=device)
    replies: list[list[int]] = [[] for _ in cut]
    rows = torch.arange(len(cut), device=device)  # that are still computed, and which of them go on
    going = torch.ones(len(cut), dtype=torch.bool, device=device)
    was_training = model.training
    model.eval()
    with settled(model):
        for _ in range(min(max_tokens, learner.context - longest)):
            logits = model.grow(tokens, seen, past).float()  # type: ignore[operator]
            if len(banned):
                logits[:, list(banned)] = -torch.inf
            drawn = draw(logits, temperature, generator)
            going &= ~torch.isin(drawn, ends)
            if not going.any():
                break
            if 2 * going.sum() <= len(rows):  # to be without the others is worth a copy of the past
                past.choose(left := going.nonzero().flatten())
                rows, drawn, seen, going = rows[left], drawn[left], seen[left], going[left]
            for row, one, goes in zip(rows.tolist(), drawn.tolist(), going.tolist(), strict=True):
                if goes:
                    replies[row].append(one)
            tokens, seen = drawn[:, None], torch.cat((seen, torch.ones_like(seen[:, :1])), dim=1)
    model.train(was_training)
    return replies


def draw(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """(B, V) logits -> (B,) ids."""
    if temperature <= 0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator).squeeze(1)
