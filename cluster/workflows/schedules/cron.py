"""When a cron line fires in a time zone. Pure.

A line has five fields; names (SUN, MON-FRI, JAN), ranges, steps, lists, `L` and `#` as the library cronsim takes them,
which steps through wall times here. What the zone's clock does is decided as Debian's cron does:

- Fixed times (neither minute nor hour begins with `*`): each wall time once. One that is skipped in spring comes at the
  first moment after the gap; one that comes twice in autumn counts the first time.
- Anything else: every real moment at which the zone's clock shows a matching time: none in a gap, and both of two.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from cluster.errors import BadSchedule

FIELDS = 5
TURN = timedelta(hours=3)  # no clock of our days has been put back by more
NOT_ZONES = ("posix", "right", "localtime", "Factory")  # files beside the zones: `right/` counts leap seconds


def check(expression: str, timezone: str) -> None:
    """Return if they make sense. Raises `BadSchedule`, for a line that never fires too."""
    if next_run(expression, timezone, datetime(2000, 1, 1, tzinfo=UTC)) is None:
        raise BadSchedule(f"no day matches {expression!r}", field="cron_expression")


@lru_cache(maxsize=1024)
def zone(name: str) -> ZoneInfo:
    """The IANA zone. Raises `BadSchedule`."""
    try:
        if name.startswith(NOT_ZONES):
            raise ValueError(name)
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError) as error:
        raise BadSchedule(f"no time zone {name[:100]!r}", field="timezone") from error


def next_run(expression: str, timezone: str, after: datetime) -> datetime | None:
    """The first moment after `after` at which the line fires, in UTC; None for never. Raises `BadSchedule`."""
    place = zone(timezone)
    wall = after.astimezone(place).replace(tzinfo=None, fold=0)
    minute, hour = _fields(expression)[:2]
    if not minute.startswith("*") and not hour.startswith("*"):
        moments = (_real(time, place) for time in _walls(expression, wall))
        return next((moment for moment in moments if moment > after), None)
    if _offset(after, place) <= _offset(after + TURN, place):
        for time in _walls(expression, wall):
            if found := [moment for moment in _both(time, place) if moment > after]:
                return min(found)
        return None
    # The clock is about to be put back: times that it has shown already come again.
    found = []
    for time in _walls(expression, wall - TURN):
        if found and time > wall + TURN:
            break
        found += [moment for moment in _both(time, place) if moment > after]
    return min(found, default=None)


def _fields(expression: str) -> list[str]:
    fields = expression.split()
    if len(fields) != FIELDS:
        raise BadSchedule(
            f"a cron expression has {FIELDS} fields: minute, hour, day of month, month, day of week",
            field="cron_expression",
        )  # fmt: skip
    return fields


def _walls(expression: str, after: datetime) -> Iterator[datetime]:
    """Matching wall times after `after`, both without a zone."""
    try:
        yield from CronSim(expression, after)
    except (CronSimError, OverflowError) as error:
        raise BadSchedule(f"not a cron expression: {error}", field="cron_expression") from error


def _offset(at: datetime, place: ZoneInfo) -> timedelta:
    return at.astimezone(place).utcoffset() or timedelta()


def _both(wall: datetime, place: ZoneInfo) -> list[datetime]:
    """The real moments at which the zone's clock shows `wall`: one, two, or none."""
    moments = {wall.replace(tzinfo=place, fold=fold).astimezone(UTC) for fold in (0, 1)}
    return [moment for moment in moments if moment.astimezone(place).replace(tzinfo=None, fold=0) == wall]


def _real(wall: datetime, place: ZoneInfo) -> datetime:
    """The first real moment at which the zone's clock shows `wall`, or has just gone past it."""
    if found := _both(wall, place):
        return min(found)
    # In a gap the later reading lies before the change, and the earlier one after it, by as much as the gap is long.
    low, high = (wall.replace(tzinfo=place, fold=fold).astimezone(UTC) for fold in (1, 0))
    before = _offset(low, place)
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) // 2
        low, high = (middle, high) if _offset(middle, place) == before else (low, middle)
    return high.replace(microsecond=0)
