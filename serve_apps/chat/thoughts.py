"""What a reader sees of a model that thinks before it speaks: thoughts are told apart by their marks' token ids. Pure.

A thinking model's folder says `"thinks": true` in `tokenizer_config.json`, and its prompts end with `<|think|>`. Text
is made here of the ids outside of thoughts, and stop strings are looked for in that text alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from train.model.tokenizer import THINK, THINKS, THOUGHT

Decode = Callable[[int], str]  # the next id's text; empty where a character is not whole yet, or for a special token


@dataclass(frozen=True, slots=True)
class Marks:
    """The ids around a thought."""

    think: int
    thought: int


@dataclass(frozen=True, slots=True)
class Heard:
    """What a step adds for the reader: its text, and the indexes of the step's ids that are no thought."""

    text: str
    indexes: tuple[int, ...]
    ended: bool = False  # a stop string was there: the reply is over, with the text before it


class Listener:
    """Hears one reply, ids first to last. `inside`: the prompt ended in a thought already."""

    def __init__(self, marks: Marks, decode: Decode, stop: Sequence[str] = (), inside: bool = True) -> None:
        self.marks, self.decode, self.stop, self.inside = marks, decode, [each for each in stop if each], inside
        self.tokens = 0  # heard in all, up to the one that completed a stop string
        self.thought_tokens = 0  # of them, with the marks
        self._held = ""  # text that may be a stop string's beginning

    def hear(self, ids: Sequence[int], last: bool = False) -> Heard:
        """The next ids; `last` gives up what was held back."""
        indexes: list[int] = []
        for index, each in enumerate(ids):
            self.tokens += 1
            if self.inside or each in (self.marks.think, self.marks.thought):
                self.thought_tokens += 1
                self.inside = each != self.marks.thought if self.inside else each == self.marks.think
                continue
            indexes.append(index)
            self._held += self.decode(each)
            if (cut := self._stopped()) is not None:
                return Heard(cut, tuple(indexes), ended=True)
        keep = 0 if last else self._beginning()
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return Heard(text, tuple(indexes))

    def _stopped(self) -> str | None:
        found = [at for each in self.stop if (at := self._held.find(each)) >= 0]
        return self._held[: min(found)] if found else None

    def _beginning(self) -> int:
        """How many last characters may begin a stop string."""
        longest = max((len(each) for each in self.stop), default=0)
        sizes = range(min(longest - 1, len(self._held)), 0, -1)
        return next((size for size in sizes if any(each.startswith(self._held[-size:]) for each in self.stop)), 0)


def marks_of(tokenizer: Any) -> Marks | None:
    """The marks around the thoughts of a model whose folder says that it thinks; None for any other."""
    if not getattr(tokenizer, "init_kwargs", {}).get(THINKS):
        return None
    return Marks(*tokenizer.convert_tokens_to_ids([THINK, THOUGHT]))
