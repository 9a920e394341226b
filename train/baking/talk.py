"""Conversations with a model that may call tools: its calls are really executed and it goes on from what they say."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import torch

from train.baking.lessons import heard, under
from train.model.generate import generate
from train.model.learner import Learner
from train.model.thoughts import thinks
from train.model.tokenizer import CALL, THINK, Turn
from train.tools import Answer, Call, Malformed, execute, parse_calls

AT_ONCE = 64  # conversations side by side


@dataclass
class Talk:
    """A conversation that has questions left to ask."""

    left: list[str]
    now: datetime  # when it takes place
    turns: list[Turn] = field(default_factory=list)
    calls: list[Call | Malformed] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    @property
    def last(self) -> str:
        """What the assistant said last, without its thought."""
        return heard(self.turns)[-1].content


def converse(
    learner: Learner, talks: Sequence[Talk], *, prompt: str = "", max_tokens: int = 64, most_calls: int = 1,
    temperature: float = 0.0, generator: torch.Generator | None = None,
) -> None:  # fmt: skip
    """Hold the conversations to their ends. `prompt` stands before them and is not among their turns.

    After `most_calls` calls a reply is an answer, whatever it says.
    """
    for start in range(0, len(talks), AT_ONCE):
        going, called = list(talks[start : start + AT_ONCE]), dict[int, int]()
        while going:
            for talk in going:
                if not talk.turns or talk.turns[-1].role == "assistant":
                    talk.turns.append(Turn("user", talk.left.pop(0)))
                    called[id(talk)] = 0
            said = replies(learner, going, prompt, max_tokens, temperature, generator)
            for talk, reply in zip(going, said, strict=True):
                talk.turns.append(Turn("assistant", reply))
                calls = parse_calls(talk.last) if CALL in talk.last else []
                if calls and called[id(talk)] < most_calls:
                    called[id(talk)] += 1
                    answered = [execute(call, talk.now) for call in calls[:1]]
                    talk.calls += calls[:1]
                    talk.answers += answered
                    talk.turns.append(Turn("tool", answered[0].text))
            going = [talk for talk in going if talk.left or talk.turns[-1].role == "tool"]


def replies(
    learner: Learner, talks: Sequence[Talk], prompt: str, max_tokens: int, temperature: float,
    generator: torch.Generator | None,
) -> list[str]:  # fmt: skip
    """What the assistant says next in each, with its marks."""
    tokenizer = learner.tokenizer
    prompts = [tokenizer.prompt(under(prompt, heard(talk.turns))) for talk in talks]
    end = tokenizer.chat([Turn("user", ""), Turn("assistant", "")])[-1]
    found = generate(learner, prompts, max_tokens, stop=[end], temperature=temperature, generator=generator)
    begun = THINK if thinks(learner) else ""
    return [begun + tokenizer.decode(ids, marks=True).strip() for ids in found]
