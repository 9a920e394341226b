"""Counting requests against the windows of a policy, exactly, however many gateway replicas count.

Windows are fixed and aligned to the clock: a window's end follows from the time alone, so one round trip of increments
is all that a request costs.
"""

from dataclasses import dataclass

from cluster.clock import Clock, utc_now
from cluster.limits.counters import Counters, Field, counter_key
from cluster.limits.policy import Policy, Windows


@dataclass(frozen=True, slots=True)
class LimitState:
    """Where a principal stands in one window after this request; `reset_at` is in seconds since the epoch."""

    window: str
    limit: int
    used: int
    reset_at: int
    reset_after: int

    @property
    def remaining(self) -> int:
        """Requests left in this window."""
        return max(0, self.limit - self.used)

    @property
    def exceeded(self) -> bool:
        """Whether this request is one too many."""
        return self.used > self.limit


@dataclass(frozen=True, slots=True)
class Counted:
    """A request that was counted. `beside` is what the field read in the same round trip holds, "" for nothing."""

    states: tuple[LimitState, ...]
    beside: str = ""


class Limiter:
    """Counts one request at a time against the windows of a policy."""

    def __init__(self, url: str, policy: Policy, clock: Clock = utc_now) -> None:
        self.policy, self.clock = policy, clock
        self._counters = Counters(url)

    async def close(self) -> None:
        """Give the connections back."""
        await self._counters.close()

    async def hit(self, who: tuple[str, ...], windows: Windows, beside: Field | None = None) -> Counted:
        """Count one request in every window, and read the hash field `beside`, in one round trip.

        A request that exceeds a narrow window is taken back from the wide ones: knocking at a full minute does not
        eat the hour. Raises `Unavailable`.
        """
        now = self.clock().timestamp()
        begins = [int(now // window.seconds) * window.seconds for window in windows]
        keys = [counter_key(*who, window.span, str(begin)) for window, begin in zip(windows, begins, strict=True)]
        expiries = [window.seconds + 5 for window in windows]
        used, found = await self._counters.add(keys, expiries, beside)
        states = tuple(
            LimitState(w.span, w.limit, count, begin + w.seconds, max(1, round(begin + w.seconds - now)))
            for w, begin, count in zip(windows, begins, used, strict=True)
        )
        over = next((n for n, state in enumerate(states) if state.exceeded), None)
        if over is not None and over + 1 < len(states):
            states = states[: over + 1]
            await self._counters.take_back(keys[over + 1 :], expiries[over + 1 :])
        return Counted(states, found)
