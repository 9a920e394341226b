"""How API keys are used: requests counted by key, hour and endpoint.

Counting is a few dictionary steps in memory; every second, and before anybody asks this process, the counts are added
to the store in one round trip. Adding is exact over any number of replicas and over answers that were lost; a process
that is killed loses at most its last second.
"""

import asyncio
import logging
import secrets
from collections.abc import Iterable, Mapping
from contextvars import Context
from dataclasses import dataclass
from datetime import datetime, timedelta

from cluster.clock import Clock, utc_now
from cluster.errors import Unavailable
from cluster.store import Store
from cluster.store.counters import Counters, add_counts, read_counts

log = logging.getLogger("village.usage")
NAME = "usage"
PERIODS = {"1d": 1, "7d": 7, "30d": 30, "90d": 90}  # days
KEPT_DAYS = max(PERIODS.values()) + 1  # a period begins at midnight, so it touches a day more than it is long
FLUSH_SECONDS = 1.0
BATCH = 500  # hashes that are added to at once
OK, FAILED, LIMITED = "ok", "failed", "limited"


@dataclass(frozen=True)
class UsageReport:
    """What one key did between `start` and `end`."""

    total: int
    successful: int
    failed: int  # those over a limit too
    rate_limit_hits: int
    per_hour: float  # over the hours of the period
    peak_per_hour: int
    by_endpoint: dict[str, int]  # the most used first
    start: datetime
    end: datetime


def outcome(status: int) -> str:
    """How a request of this status counts."""
    return LIMITED if status == 429 else FAILED if status >= 400 else OK


def report(days: Iterable[Mapping[str, int]], period: str, at: datetime) -> UsageReport:
    """The sum of the days' counters: fields are `h<hour>` and `<outcome> <endpoint>`."""
    counts: dict[str, int] = dict.fromkeys((OK, FAILED, LIMITED), 0)
    endpoints: dict[str, int] = {}
    peak = 0
    for day in days:
        for field, count in day.items():
            kind, _, endpoint = field.partition(" ")
            if endpoint:
                counts[kind] += count
                endpoints[endpoint] = endpoints.get(endpoint, 0) + count
            else:
                peak = max(peak, count)
    total = sum(counts.values())
    return UsageReport(
        total=total, successful=counts[OK], failed=total - counts[OK], rate_limit_hits=counts[LIMITED],
        per_hour=total / (24 * PERIODS[period]), peak_per_hour=peak,
        by_endpoint=dict(sorted(endpoints.items(), key=lambda pair: (-pair[1], pair[0]))), start=begin(period, at),
        end=at,
    )  # fmt: skip


def begin(period: str, at: datetime) -> datetime:
    """Midnight (UTC) of the day that the period reaches back to."""
    return at.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=PERIODS[period])


def by_day(counts: Mapping[tuple[str, int, str, str], int]) -> list[Counters]:
    """What to add to which hash; `counts` are by key, hour (since 1970), endpoint and outcome."""
    days: dict[tuple[str, int], dict[str, int]] = {}
    for (key_id, hour, endpoint, how), count in counts.items():
        fields = days.setdefault((key_id, hour // 24), {})
        for field in (f"h{hour % 24}", f"{how} {endpoint}"):
            fields[field] = fields.get(field, 0) + count
    return [Counters((key_id, str(day)), (day + KEPT_DAYS + 1) * 86400, f) for (key_id, day), f in days.items()]


class Usage:
    """The counters of this process, and the sums of all."""

    def __init__(self, store: Store, clock: Clock = utc_now) -> None:
        self.store, self.clock = store, clock
        self._counts: dict[tuple[str, int, str, str], int] = {}
        self._writer, self._batch = secrets.token_hex(8), 0
        self._sending: list[list[Counters]] = []  # batches that the store has not yet acknowledged, in their order
        self._turn = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Task[None] | None = None

    def note(self, key_id: str, endpoint: str, status: int) -> None:
        """One request more. `endpoint` is the route's template. Returns at once and raises nothing."""
        counted = key_id, int(self.clock().timestamp()) // 3600, endpoint, outcome(status)
        self._counts[counted] = self._counts.get(counted, 0) + 1
        if self._timer is None:
            # Not in the request's context: what belongs to it must not go along with this.
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._due, context=Context())

    def _due(self) -> None:
        self._flushing = asyncio.get_running_loop().create_task(self._flush_quietly())

    async def _flush_quietly(self) -> None:
        try:
            await self.flush()
        except Unavailable:
            log.warning("the store does not answer: counts of API keys wait in memory")
        self._timer = None
        if self._counts or self._sending:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._due)

    async def flush(self) -> None:
        """Add what was counted so far to the store. Raises `Unavailable`; it is kept then, and added later."""
        async with self._turn:
            counted, self._counts = by_day(self._counts), {}
            self._sending += [counted[n : n + BATCH] for n in range(0, len(counted), BATCH)]
            while self._sending:
                await add_counts(self.store, NAME, self._writer, self._batch + 1, self._sending[0])
                self._batch += 1
                self._sending.pop(0)

    async def close(self) -> None:
        """Leave nothing behind that the store would take."""
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self.flush()
        except Unavailable:
            log.warning("counts of API keys are lost", extra={"batches": len(self._sending)})

    async def of(self, key_id: str, period: str) -> UsageReport:
        """What the key did in a period of `PERIODS`. Raises `Unavailable`."""
        await self.flush()
        at = self.clock()
        first, last = (int(day.timestamp()) // 86400 for day in (begin(period, at), at))
        days = await read_counts(self.store, NAME, [(key_id, str(day)) for day in range(first, last + 1)])
        return report(days, period, at)
