"""Thoughts inside of what an assistant writes: everything from `<|think|>` to `<|thought|>`. Pure.

A model that thinks is prompted up to and with `<|think|>`, so that its reply begins inside of a thought.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from train.model.tokenizer import THINK, THOUGHT

if TYPE_CHECKING:
    from train.model.learner import Learner


def without_thoughts(ids: Sequence[int], think: int, thought: int, inside: bool = False) -> list[int]:
    """The ids outside of thoughts, without the marks. `inside`: the first id belongs to a thought already.

    A thought that never ends takes everything after it along; an end without a beginning is dropped alone.
    """
    kept: list[int] = []
    for each in ids:
        if each in (think, thought):
            inside = each == think
        elif not inside:
            kept.append(each)
    return kept


def spoken(learner: "Learner", ids: Sequence[int]) -> list[int]:
    """What a reader sees of ids that followed `learner.tokenizer.prompt`: all but the thoughts."""
    known = learner.tokenizer.ids
    if THINK not in known or THOUGHT not in known:
        return list(ids)
    return without_thoughts(ids, known[THINK], known[THOUGHT], thinks(learner))


def thinks(learner: "Learner") -> bool:
    """Whether the model's replies begin with a thought."""
    return bool(getattr(learner.tokenizer, "thinks", False))


def thought_of(content: str) -> tuple[str, str]:
    """An assistant's turn as its first thought and what it says aloud; the thought is empty where there is none."""
    before, mark, rest = content.partition(THINK)
    thought, _, after = rest.partition(THOUGHT)
    return (thought.strip(), (before + after).strip()) if mark else ("", content.strip())


def thinking(thought: str, said: str) -> str:
    """An assistant's turn that says `said` after thinking `thought`."""
    return f"{THINK}{thought}{THOUGHT}{said}"
