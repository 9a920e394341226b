"""Tasks put to a model: its own replies, checked; and how often they are right."""

import ast
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from train.curriculum.expression import Refused, parsed
from train.curriculum.language import MOST_CHARACTERS
from train.curriculum.sandbox import Sandbox
from train.curriculum.tasks import Task, exact
from train.model.generate import generate
from train.model.learner import Learner
from train.model.thoughts import spoken, thinks
from train.model.tokenizer import END, THINK, Turn

AT_ONCE = 256  # prompts
SPARE_TOKENS = 2  # that a reply may have beyond the answer that is taught


@dataclass(frozen=True)
class Answered:
    """A task, what the model said to it with the marks of its thoughts, and whether that is right."""

    task: Task
    reply: str
    right: bool


def answers(
    learner: Learner, tasks: Sequence[Task], sandbox: Sandbox, *, thought_tokens: int, temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[Answered]:  # fmt: skip
    """Every task asked once. A model that thinks gets `thought_tokens` more for it."""
    found: list[Answered] = []
    stop = stops(learner)
    for start in range(0, len(tasks), AT_ONCE):
        some = tasks[start : start + AT_ONCE]
        longest = max(len(learner.tokenizer.marked(task.answer)) for task in some)
        room = longest + SPARE_TOKENS + (thought_tokens if thinks(learner) else 0)
        prompts = [learner.tokenizer.prompt([Turn("user", task.question)]) for task in some]
        replies = generate(learner, prompts, room, stop=stop, temperature=temperature, generator=generator)
        for task, ids in zip(some, replies, strict=True):
            said = learner.tokenizer.decode(spoken(learner, ids))
            marked = learner.tokenizer.decode(ids, marks=True)
            reply = THINK + marked if thinks(learner) else marked
            found.append(Answered(task, reply, right(task, said, sandbox)))
    return found


def stops(learner: Learner) -> list[int]:
    """The ids that end what the model says."""
    ours = learner.tokenizer.ids.get(END)
    return [learner.tokenizer.inner.eos_token_id if ours is None else ours]


def right(task: Task, reply: str, sandbox: Sandbox) -> bool:
    """Whether the reply answers the task; a program is run, and has to work something out."""
    if task.value is None:
        return exact(task, reply)
    return works_out(reply) and sandbox.run(reply).value == task.value


def works_out(program: str) -> bool:
    """Whether there is more in a program than the value itself."""
    try:
        tree = parsed(program, MOST_CHARACTERS, "exec")
    except Refused:
        return False
    return any(isinstance(node, ast.BinOp | ast.Call | ast.Subscript | ast.AugAssign) for node in ast.walk(tree))


class Success(NamedTuple):
    """Right answers among those asked."""

    right: int = 0
    asked: int = 0

    @property
    def share(self) -> float:
        """0 to 1; 0 where nothing was asked."""
        return self.right / self.asked if self.asked else 0.0


def by(answered: Iterable[Answered], what: str) -> dict[str | int, Success]:
    """Success by a field of the tasks: `family` or `level`."""
    found: dict[str | int, Success] = defaultdict(Success)
    for each in answered:
        here = found[getattr(each.task, what)]
        found[getattr(each.task, what)] = Success(here.right + each.right, here.asked + 1)
    return dict(found)
