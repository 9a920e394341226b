"""Trust as a pure function of a ledger: the mean of a Beta posterior whose evidence fades.

The prior is Beta(12.5, 12.5), so an unknown agent stands at 0.5 and its first completion moves it by about +0.02.
Evidence halves every 30 days (the beta reputation system of Josang and Ismail, 2002, with exponential forgetting).
"""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

PRIOR = 12.5
HALF_LIFE_DAYS = 30.0
LEVELS = ((0.9, "excellent"), (0.7, "high"), (0.5, "medium"), (0.3, "low"), (0.0, "very_low"))
TREND_STEP = 0.005  # a mean move per record below this is "stable"


class TrustEvent(StrEnum):
    """What moves trust."""

    COMPLETED = "task_completed"
    FAILED = "task_failed"
    TIMEOUT = "task_timeout"
    DISAGREED = "task_disagreed"  # a verified task's result that the others' results contradict
    ADJUSTED = "manual_adjustment"


@dataclass(frozen=True)
class Evidence:
    """What is known of an agent at a time: weights on the good and the bad side, beyond the prior."""

    good: float
    bad: float
    at: datetime

    @property
    def mean(self) -> float:
        """The trust score, 0-1."""
        return mean(self.good, self.bad)


def mean(good: float, bad: float) -> float:
    """Of the posterior over such evidence: the score."""
    return (PRIOR + good) / (2 * PRIOR + good + bad)


def fading(since: datetime, at: datetime) -> float:
    """What is left at `at` of a weight of one from `since`; no time back."""
    days = max(0.0, (at - since).total_seconds() / 86_400)
    return 0.5 ** (days / HALF_LIFE_DAYS)


def faded(evidence: Evidence, at: datetime) -> Evidence:
    """The same evidence as it weighs at a later time."""
    weight = fading(evidence.at, at)
    return Evidence(evidence.good * weight, evidence.bad * weight, max(at, evidence.at))


def weights(
    event: TrustEvent, seconds: float | None, timeout_seconds: float, others: int = 0
) -> tuple[float, float, str]:
    """What an outcome adds to the good and to the bad side, and the reason in words. `others`: who contradict it."""
    if event is TrustEvent.COMPLETED:
        if seconds is not None and seconds <= timeout_seconds / 2:
            return 1.5, 0.0, "Task completed successfully within half its timeout"
        return 1.0, 0.0, "Task completed successfully within its timeout"
    if event is TrustEvent.FAILED:
        return 0.0, 2.5, "Task failed"
    if event is TrustEvent.DISAGREED:
        return 0.0, 2.5, f"Result disagreed with {others} other{'s' if others != 1 else ''}"
    return 0.0, 1.5, "Task exceeded its timeout"


def observe(evidence: Evidence, good: float, bad: float, at: datetime) -> Evidence:
    """Fade to `at`, then add."""
    now = faded(evidence, at)
    return replace(now, good=now.good + good, bad=now.bad + bad)


def adjustment(evidence: Evidence, delta: float, at: datetime) -> tuple[float, float]:
    """The weights that shift the mean at `at` by exactly `delta` and leave the amount of evidence alone."""
    now = faded(evidence, at)
    shift = delta * (2 * PRIOR + now.good + now.bad)
    return shift, -shift


def level(score: float) -> str:
    """The word for a score."""
    return next(word for floor, word in LEVELS if score >= floor)


def trend(deltas: list[float]) -> str:
    """Of the last records' deltas: increasing, stable or decreasing."""
    mean = sum(deltas) / len(deltas) if deltas else 0.0
    return "increasing" if mean > TREND_STEP else "decreasing" if mean < -TREND_STEP else "stable"


def reliability_rating(good: float, bad: float) -> float:
    """0-5: five times the mean of all evidence, unfaded."""
    # Adjustments fade from the score but not from here, so many of them may leave the range together.
    return 5 * min(1.0, max(0.0, (PRIOR + good) / (2 * PRIOR + good + bad)))
