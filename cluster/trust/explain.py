"""A score as the sum that it is: the prior, and what each line of the ledger still weighs. Pure."""

from dataclasses import dataclass, field
from datetime import datetime

from cluster.trust import score
from cluster.trust.ledger import Standing, TrustRecord
from cluster.trust.replay import Verdict

CLOSE = 1e-9


@dataclass(frozen=True)
class Weighed:
    """One line, as it weighs at the time that was asked for."""

    record: TrustRecord
    good: float
    bad: float
    moves: float  # the score, less what it would be without this line


@dataclass(frozen=True)
class Explanation:
    """The sum and its proof."""

    as_of: datetime
    lines: list[Weighed]  # newest first
    good: float
    bad: float
    score: float
    stated: float  # by the standing, or by the last line before `as_of`
    counts: dict[str, int]
    verdict: Verdict

    @property
    def agrees(self) -> bool:
        """Whether the sum is the score that the platform goes by."""
        return abs(self.score - self.stated) <= CLOSE

    def strongest(self, most: int) -> list[Weighed]:
        """What moves the score most, either way."""
        return sorted(self.lines, key=lambda line: (-abs(line.moves), -line.record.number))[:most]


@dataclass
class Sum:
    """Adds up lines, oldest first."""

    as_of: datetime
    taken: list[tuple[TrustRecord, float]] = field(default_factory=list)

    def add(self, record: TrustRecord) -> None:
        """A line of a later time has no weight yet."""
        if record.created_at <= self.as_of:
            self.taken.append((record, score.fading(record.created_at, self.as_of)))

    def explanation(self, verdict: Verdict, standing: Standing | None) -> Explanation:
        """What the lines come to; the standing says what they should."""
        weighed = [(record, record.good * weight, record.bad * weight) for record, weight in self.taken]
        good, bad = sum(g for _, g, _ in weighed), sum(b for _, _, b in weighed)
        mean = score.mean(good, bad)
        counts: dict[str, int] = {}
        for record, _, _ in weighed:
            counts[record.event_type] = counts.get(record.event_type, 0) + 1
        return Explanation(
            as_of=self.as_of, good=good, bad=bad, score=mean, stated=self._stated(standing, good, bad), counts=counts,
            verdict=verdict,
            lines=[Weighed(record, g, b, mean - score.mean(good - g, bad - b)) for record, g, b in reversed(weighed)],
        )  # fmt: skip

    def _stated(self, standing: Standing | None, good: float, bad: float) -> float:
        if standing is not None and standing.as_of <= self.as_of:
            return standing.score(self.as_of)
        if not self.taken:
            return score.mean(0.0, 0.0)
        # Of an earlier time only the last line's score is on record, and fading it needs the amount of evidence.
        last, weight = self.taken[-1]
        return 0.5 + (last.after - 0.5) * (_kept((good + bad) / weight, weight) if weight else 0.0)


def _kept(amount: float, weight: float) -> float:
    """What is left of a score's distance from the prior once its evidence, of that amount, weighs `weight` of it."""
    prior = 2 * score.PRIOR
    return weight * (prior + amount) / (prior + amount * weight)
