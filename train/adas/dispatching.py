"""Transformer-squared's first pass: which family of tasks a question belongs to (arXiv:2501.06252, section 3.2).

Two of the paper's ways are here: a classifier, which is a logistic regression on the first pass's hidden states rather
than one more trained expert, and the prompt that asks the model itself. The third, a search for mixture weights with a
few examples, is `train.adas.mixing`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from train.adas.experts import Dispatcher
from train.model.learner import Learner
from train.model.tokenizer import Turn

CLASSIFY = "Which family is this question of: {families}?\n{question}"
ROWS_AT_ONCE = 64


@torch.no_grad()
def features(learner: Learner, questions: Sequence[str]) -> Tensor:
    """(questions, W): the mean over each prompt's tokens of the last hidden states, in float32."""
    device, found = next(learner.model.parameters()).device, []
    was_training = learner.model.training
    learner.model.eval()
    for start in range(0, len(questions), ROWS_AT_ONCE):
        prompts = [learner.tokenizer.prompt([Turn("user", q)])[-learner.context :] for q in
                   questions[start : start + ROWS_AT_ONCE]]  # fmt: skip
        longest = max(len(prompt) for prompt in prompts)
        tokens = torch.tensor([p + [learner.pad] * (longest - len(p)) for p in prompts], device=device)
        real = torch.tensor([[1.0] * len(p) + [0.0] * (longest - len(p)) for p in prompts], device=device)[..., None]
        hidden = learner.model.hidden(tokens).float()  # type: ignore[operator]  # padding comes last: nobody sees it
        found.append(((hidden * real).sum(1) / real.sum(1)).cpu())
    learner.model.train(was_training)
    return torch.cat(found)


def fitted(learner: Learner, questions: Sequence[str], families: Sequence[str]) -> Dispatcher:
    """A dispatcher that has learnt from questions and the family of each."""
    from sklearn.linear_model import LogisticRegression  # seconds to import, and trials need none of it

    x = features(learner, questions)
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    # Standardised for the fit, then folded back into weight and bias.
    model = LogisticRegression(max_iter=1000, C=1.0).fit(((x - mean) / deviation).numpy(), list(families))
    weight = torch.from_numpy(model.coef_).float() / deviation
    bias = torch.from_numpy(model.intercept_).float() - weight @ mean
    if len(model.classes_) == 2:  # one row stands for the second class against the first
        weight, bias = torch.cat((-weight, weight)) / 2, torch.cat((-bias, bias)) / 2
    return Dispatcher([str(name) for name in model.classes_], weight, bias)


def accuracy(learner: Learner, dispatcher: Dispatcher, questions: Sequence[str], families: Sequence[str]) -> float:
    """Share (0 to 1) of questions that are sent to their own family."""
    found = dispatcher.families_of(features(learner, questions))
    return sum(a == b for a, b in zip(found, families, strict=True)) / len(families)


@torch.no_grad()
def prompted(learner: Learner, question: str, families: Sequence[str]) -> str:
    """The family that the model itself names: the likeliest name as its reply, per token."""
    asked = learner.tokenizer.prompt([Turn("user", CLASSIFY.format(families=", ".join(families), question=question))])
    device, scores = next(learner.model.parameters()).device, []
    for family in families:
        name = learner.tokenizer.marked(family)
        ids = torch.tensor([[*asked, *name]], device=device)[:, -learner.context :]
        logits = learner.model(ids)[0, -len(name) - 1 : -1].float()  # (name, V)
        scores.append(-F.cross_entropy(logits, ids[0, -len(name) :]).item())
    return families[max(range(len(families)), key=lambda i: scores[i])]
