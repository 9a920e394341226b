"""The archive of designs with what each measured; whom it prefers, and who wins. Pure."""

import math
from collections.abc import Iterable, Sequence

from pydantic import BaseModel

from train.adas.design import Design, Measurement

CONFIDENCE = 1.96  # standard deviations either side: 95 %


class Record(BaseModel):
    """A design and its measurements on the first `questions` questions of the search."""

    number: int
    design: Design
    origin: str  # which operator proposed it
    rung: int = -1  # the last that it has finished; -1: none yet
    failed: bool = False
    questions: int = 0
    right: int = 0
    tokens: int = 0  # generated
    seconds: float = 0.0

    @property
    def success(self) -> float:
        """Share (0 to 1) of right answers; 0 before the first question."""
        return self.right / self.questions if self.questions else 0.0

    @property
    def tokens_per_answer(self) -> float:
        """Generated tokens."""
        return self.tokens / max(1, self.questions)

    @property
    def seconds_per_answer(self) -> float:
        """Many questions at once."""
        return self.seconds / max(1, self.questions)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of success."""
        return wilson(self.right, self.questions)

    def measurement(self) -> Measurement:
        """As it goes into `agent.json`."""
        low, high = self.interval
        return Measurement(
            success=self.success, low=low, high=high, questions=self.questions,
            tokens_per_answer=self.tokens_per_answer, seconds_per_answer=self.seconds_per_answer,
        )  # fmt: skip


def wilson(right: int, asked: int, z: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a share; (0, 1) where nothing was asked."""
    if not asked:
        return 0.0, 1.0
    share, bound = right / asked, z * z / asked
    middle = (share + bound / 2) / (1 + bound)
    reach = z * math.sqrt(share * (1 - share) / asked + bound / (4 * asked)) / (1 + bound)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def gain(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float]:
    """What success rose by on the same questions, and the standard error of that: of the mean paired difference."""
    differences = [float(b) - float(a) for a, b in zip(before, after, strict=True)]
    mean = sum(differences) / len(differences)
    spread = sum((each - mean) ** 2 for each in differences) / max(1, len(differences) - 1)
    return mean, math.sqrt(spread / len(differences))


def pareto(records: Iterable[Record]) -> list[Record]:
    """Those that no other beats in success, tokens and seconds alike; best success first."""
    known = [record for record in records if record.questions]
    front = [record for record in known if not any(dominates(other, record) for other in known)]
    return sorted(front, key=lambda record: (-record.success, record.tokens_per_answer))


def dominates(one: Record, other: Record) -> bool:
    """Whether one is at least as good in everything and better in something."""
    a, b = ((-r.success, r.tokens_per_answer, r.seconds_per_answer) for r in (one, other))
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def winner(records: Iterable[Record], allowed: Iterable[Design] | None = None) -> Record | None:
    """The best by success among those that got furthest; of those within its standard error, the one of fewest tokens.

    `allowed` leaves out what cannot be delivered. None where nothing was measured.
    """
    known = [r for r in records if r.questions and (allowed is None or r.design in allowed)]
    if not known:
        return None
    furthest = [record for record in known if record.questions == max(r.questions for r in known)]
    best = max(furthest, key=lambda record: record.success)
    error = math.sqrt(best.success * (1 - best.success) / best.questions)
    as_good = [record for record in furthest if record.success >= best.success - error]
    return min(as_good, key=lambda record: (record.tokens_per_answer, -record.success, record.number))


def jsonl(records: Iterable[Record]) -> bytes:
    """One object a line, best first."""
    ordered = sorted(records, key=lambda record: (-record.interval[0], record.number))
    return b"".join(record.model_dump_json().encode() + b"\n" for record in ordered)
