"""What thoughts are worth: exact answers with and without them, and the likelihood of true text after them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from train.data.packing import Batch
from train.loop import autocast, to_tensors
from train.model.generate import generate
from train.model.learner import Learner
from train.model.thoughts import spoken, thinks
from train.model.tokenizer import ASSISTANT, END, THINK, THOUGHT, Turn
from train.quietstar.arithmetic import Question
from train.quietstar.objective import Wanted, pondered
from train.quietstar.thinker import Thinker, likelihood

ANSWER = 24  # tokens that an answer may take
AT_ONCE = 128  # questions


@dataclass(frozen=True)
class Answered:
    """A question, all that the model wrote, and what of it counts."""

    question: Question
    ids: list[int]
    right: bool


def examined(learner: Learner, exam: Sequence[Question], thought_tokens: int) -> list[Answered]:
    """Each question answered greedily; right is what says exactly what the key says. A thought takes tokens on top.

    A learner whose tokenizer does not think is kept from it.
    """
    stop, found = [learner.tokenizer.ids[END]], []
    banned = [] if thinks(learner) else [learner.tokenizer.ids[THINK]]
    for start in range(0, len(exam), AT_ONCE):
        some = exam[start : start + AT_ONCE]
        prompts = [learner.tokenizer.prompt((Turn("user", question.words),)) for question in some]
        replies = generate(learner, prompts, ANSWER + thought_tokens, stop=stop, banned=banned)
        for question, ids in zip(some, replies, strict=True):
            said = learner.tokenizer.decode(spoken(learner, ids)).strip()
            found.append(Answered(question, ids, said == question.sum.answer))
    return found


def accuracy(learner: Learner, exams: Mapping[str, Sequence[Question]], room: int) -> dict[str, float]:
    """Shares (0 to 1) of right answers, of each kind and in all; how many were asked; tokens of a reply and thought."""
    answered = {kind: examined(learner, exam, room) for kind, exam in exams.items()}
    every = [each for some in answered.values() for each in some]
    shares = {kind: sum(each.right for each in some) / len(some) for kind, some in answered.items()}
    thought = sum(len(each.ids) - len(spoken(learner, each.ids)) for each in every) / len(every)
    return shares | {
        "all": sum(each.right for each in every) / len(every), "asked": float(len(every)), "thought_tokens": thought,
        "tokens": sum(len(each.ids) for each in every) / len(every),
    }  # fmt: skip


@torch.no_grad()
def helps(learner: Learner, answered: Answered) -> bool:
    """Whether the answer is likelier after the thought than at once."""
    tokenizer, turn = learner.tokenizer, (Turn("user", answered.question.words),)
    ids = answered.ids
    thought = ids[: ids.index(tokenizer.ids[THOUGHT]) + 1]
    said = [*ids[len(thought) :], tokenizer.ids[END]]
    prompt = [*tokenizer.chat(turn), tokenizer.ids[ASSISTANT]]
    with_thought, without = (
        said_after(learner, before, said) for before in ([*prompt, tokenizer.ids[THINK], *thought], prompt)
    )
    return with_thought > without


def said_after(learner: Learner, before: list[int], said: list[int]) -> float:
    """Log-likelihood of `said` after `before`, in nats."""
    device = next(learner.model.parameters()).device
    tokens = torch.tensor([[*before, *said]], device=device)
    logits = learner.model(tokens)[0, len(before) - 1 : -1].float()
    return likelihood(logits, tokens[0, len(before) :]).sum().item()


def silent(learner: Learner) -> Learner:
    """The same model, prompted to answer at once."""
    tokenizer = learner.tokenizer
    return replace(learner, tokenizer=type(tokenizer)(tokenizer.bpe))


@torch.no_grad()
def future(
    thinker: Thinker, learner: Learner, batches: Sequence[Batch], wanted: Wanted, precision: str, device: torch.device
) -> dict[str, float]:
    """Held-out nats per token of the `ahead` tokens after random places: plain, with the mixture, by the thought alone.

    Draws from torch's random numbers, which are as before when it returns.
    """
    totals, weight, count = torch.zeros(3), 0.0, 0
    ids, chance = learner.tokenizer.ids, torch.get_rng_state()
    torch.manual_seed(0)
    once = replace(wanted, thoughts=1, anywhere=0.5)
    for each in batches:
        tokens, _, documents = to_tensors(each, device)
        with autocast(precision, device):
            found = thinker.consider(pondered(thinker, tokens, documents, ids[ASSISTANT], once))
        totals += torch.stack([-(part * found.known).sum().cpu() for part in (found.plain, found.mixed, found.thought)])
        weight += float((found.weight * found.known).sum())
        count += int(found.known.sum())
    torch.set_rng_state(chance)
    plain, mixed, thought = (totals / max(1, count)).tolist()
    return {"plain": plain, "mixed": mixed, "thought": thought, "weight": weight / max(1, count)}
