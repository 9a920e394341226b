"""How many messages one connection may send: counted here, because a connection lives in one process."""

from collections.abc import Mapping
from datetime import UTC, datetime

from cluster.clock import iso
from cluster.errors import LimitExceeded
from cluster.limits.policy import SECONDS, Span

PATIENCE = 20  # messages over the limit, in one window, that are answered; then the connection ends


class TooManyMessages(LimitExceeded):
    """Over the limit in spite of having been told."""


class MessageLimit:
    """Counts in spans aligned to the clock, as the limits on requests do. Pure: the time is an argument."""

    __slots__ = ("_begins", "_limits", "_used")

    def __init__(self, limits: Mapping[Span, int]) -> None:
        self._limits = limits
        self._begins: dict[Span, int] = {}
        self._used: dict[Span, int] = {}

    def hit(self, at: datetime) -> None:
        """One message. Raises `LimitExceeded`, and `TooManyMessages` when the connection is to end."""
        now = at.timestamp()
        for span, limit in self._limits.items():
            begin = int(now // SECONDS[span]) * SECONDS[span]
            if self._begins.get(span) != begin:
                self._begins[span], self._used[span] = begin, 0
            self._used[span] += 1
            if self._used[span] > limit:
                end = begin + SECONDS[span]
                kind = TooManyMessages if self._used[span] > limit + PATIENCE else LimitExceeded
                raise kind(
                    f"more than {limit} messages per {span}",
                    limit=limit,
                    window=f"1 {span}",
                    reset_at=iso(datetime.fromtimestamp(end, UTC)),
                    retry_after_seconds=max(1, round(end - now)),
                )
