"""What a model that may call tools is worth, by executing its calls; and how near two models are."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import torch

from train.baking.lessons import Lesson
from train.baking.lowrank import without
from train.baking.objective import divergence, states
from train.baking.talk import Talk, converse
from train.baking.tasks import Task
from train.data.sources import Document
from train.model.learner import Learner
from train.tools import Call

SOME_DAY = datetime(2026, 1, 1, tzinfo=UTC)


class Rates(NamedTuple):
    """Shares (0 to 1) of the tasks: each needs what stands before it."""

    call: float  # there was a call that fits its tool's schema
    tool: float  # of the right tool
    arguments: float  # with the right arguments
    success: float  # and the reply to the tool's answer says what the tool said
    asked: int  # how many tasks

    @property
    def error(self) -> float:
        """Standard error of `success`."""
        return math.sqrt(self.success * (1 - self.success) / max(1, self.asked))


def tool_rates(learner: Learner, tasks: Sequence[Task], prompt: str = "", max_tokens: int = 64) -> Rates:
    """Ask every question, execute what is called, read the answer."""
    talks = [Talk([task.question], task.now) for task in tasks]
    converse(learner, talks, prompt=prompt, max_tokens=max_tokens)
    seen = []
    for task, talk in zip(tasks, talks, strict=True):
        first = talk.calls[0] if talk.calls else None
        call = isinstance(first, Call)
        tool = isinstance(first, Call) and first.name == task.call.name
        arguments = tool and first == task.call
        seen.append((call, tool, arguments, arguments and task.answered_by(talk.last)))
    count = max(1, len(seen))
    call, tool, arguments, success = (sum(column) / count for column in zip(*seen, strict=True))
    return Rates(call, tool, arguments, success, len(seen))


def chat_rates(
    learner: Learner, asked: Sequence[Document], prompt: str = "", max_tokens: int = 64
) -> tuple[float, float]:
    """Of questions that need no tool: the share that is met with a call, and the share answered word for word."""
    talks = [Talk([document.turns[0].content], SOME_DAY) for document in asked]
    converse(learner, talks, prompt=prompt, max_tokens=max_tokens)
    called = sum(bool(talk.calls) for talk in talks)
    right = sum(talk.last == document.turns[1].content for talk, document in zip(talks, asked, strict=True))
    return called / max(1, len(talks)), right / max(1, len(talks))


@torch.no_grad()
def agreement(model: Any, lessons: Sequence[Lesson], precision: str, device: torch.device) -> tuple[float, float]:
    """Of a model with low-rank deltas, against itself without them and prompted, over what the lessons' replies say.

    Mean KL(teacher || student) in nats a token, and the share of tokens that both rank first.
    """
    with without(model):
        taught = torch.cat(states(model, lessons, precision, device)).float()
    learnt = torch.cat(states(model, [each._replace(taught=each.ids) for each in lessons], precision, device)).float()
    teacher, student = model.lm_head(taught), model.lm_head(learnt)
    same = (teacher.argmax(-1) == student.argmax(-1)).float().mean()
    return divergence(teacher, student).mean().item(), same.item()


@torch.no_grad()
def copied(model: Any, lessons: Sequence[Lesson], precision: str, device: torch.device) -> float:
    """The share of the lessons of which the model ranks every token first that counts."""
    right = [
        bool((model.lm_head(hidden.float()).argmax(-1).cpu().numpy() == lesson.ids[lesson.at + 1]).all())
        for lesson, hidden in zip(lessons, states(model, lessons, precision, device), strict=True)
    ]
    return sum(right) / max(1, len(right))
