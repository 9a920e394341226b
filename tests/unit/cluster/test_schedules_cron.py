"""When a cron line fires: a table of the cases people trip over, and the rule against a clock that is read minute by
minute."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cluster.errors import BadSchedule
from cluster.workflows.schedules.cron import check, next_run, zone

NEW_YORK, BERLIN = "America/New_York", "Europe/Berlin"
ZONES = [
    "UTC",
    NEW_YORK,
    BERLIN,
    "Australia/Lord_Howe",
    "Africa/Cairo",
    "Asia/Kolkata",
    "Pacific/Apia",
    "Africa/Casablanca",
]


def runs(line: str, timezone: str, after: str, count: int) -> list[str]:
    at = datetime.fromisoformat(after)
    found = []
    for _ in range(count):
        at = next_run(line, timezone, at)
        assert at is not None and at.tzinfo is UTC
        found.append(at.astimezone(ZoneInfo(timezone)).isoformat())
    return found


@pytest.mark.parametrize(
    ("line", "timezone", "after", "expected"),
    [
        # The document's examples.
        ("*/5 * * * *", "UTC", "2025-11-23T14:21:00+00:00", ["2025-11-23T14:25:00+00:00", "2025-11-23T14:30:00+00:00"]),
        ("0 */2 * * *", "UTC", "2025-11-23T23:00:01+00:00", ["2025-11-24T00:00:00+00:00", "2025-11-24T02:00:00+00:00"]),
        ("0 9 * * 1-5", "UTC", "2025-11-21T09:00:00+00:00", ["2025-11-24T09:00:00+00:00", "2025-11-25T09:00:00+00:00"]),
        ("0 0 1 * *", "UTC", "2025-11-23T14:25:00+00:00", ["2025-12-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00"]),
        ("0 2 * * SUN", "UTC", "2025-11-23T02:00:00+00:00", ["2025-11-30T02:00:00+00:00"]),
        ("0 2 * * *", NEW_YORK, "2025-11-23T14:25:00+00:00", ["2025-11-24T02:00:00-05:00"]),
        ("0 9 * jan-mar mon-fri", BERLIN, "2025-11-23T00:00:00+00:00", ["2026-01-01T09:00:00+01:00"]),
        # 9 March 2025, 02:00 to 03:00 is not there in New York: once, just after the gap.
        ("30 2 * * *", NEW_YORK, "2025-03-08T12:00:00-05:00",
         ["2025-03-09T03:00:00-04:00", "2025-03-10T02:30:00-04:00"]),
        ("0,30 2 * * *", NEW_YORK, "2025-03-09T01:00:00-05:00",
         ["2025-03-09T03:00:00-04:00", "2025-03-10T02:00:00-04:00", "2025-03-10T02:30:00-04:00"]),
        ("0 2,3 * * *", NEW_YORK, "2025-03-09T01:00:00-05:00",
         ["2025-03-09T03:00:00-04:00", "2025-03-10T02:00:00-04:00"]),
        ("*/30 2 * * *", NEW_YORK, "2025-03-09T01:00:00-05:00", ["2025-03-10T02:00:00-04:00"]),
        # 2 November 2025, 01:00 to 02:00 comes twice: a fixed time the first time only, a wildcard both times.
        ("30 1 * * *", NEW_YORK, "2025-11-01T12:00:00-04:00",
         ["2025-11-02T01:30:00-04:00", "2025-11-03T01:30:00-05:00"]),
        ("30 1 * * *", NEW_YORK, "2025-11-02T01:10:00-05:00", ["2025-11-03T01:30:00-05:00"]),
        ("*/30 * * * *", NEW_YORK, "2025-11-02T01:00:00-04:00",
         ["2025-11-02T01:30:00-04:00", "2025-11-02T01:00:00-05:00", "2025-11-02T01:30:00-05:00",
          "2025-11-02T02:00:00-05:00"]),
        ("30 * * * *", NEW_YORK, "2025-11-02T01:30:00-04:00",
         ["2025-11-02T01:30:00-05:00", "2025-11-02T02:30:00-05:00"]),
        # Half an hour is put back at 02:00 on Lord Howe Island, to 01:30.
        ("45 1 * * *", "Australia/Lord_Howe", "2025-04-06T01:45:00+11:00", ["2025-04-07T01:45:00+10:30"]),
        ("0 */2 * * *", "Australia/Lord_Howe", "2025-04-06T01:00:00+11:00", ["2025-04-06T02:00:00+10:30"]),
        # Cairo puts the clock forward at midnight, and Samoa left out a whole day.
        ("0 0 * * *", "Africa/Cairo", "2025-04-24T12:00:00+02:00", ["2025-04-25T01:00:00+03:00"]),
        ("*/20 * * * FRI", "Africa/Cairo", "2025-04-22T12:00:00+02:00", ["2025-04-25T01:00:00+03:00"]),
        ("0 12 * * *", "Pacific/Apia", "2011-12-29T12:00:00-10:00",
         ["2011-12-31T00:00:00+14:00", "2011-12-31T12:00:00+14:00"]),
        ("0 0 29 2 *", "UTC", "2025-01-01T00:00:00+00:00", ["2028-02-29T00:00:00+00:00"]),
        ("0 0 L * *", "UTC", "2025-02-01T00:00:00+00:00", ["2025-02-28T00:00:00+00:00"]),
    ],
)  # fmt: skip
def test_when_a_line_fires(line: str, timezone: str, after: str, expected: list[str]):
    assert runs(line, timezone, after, len(expected)) == expected


@pytest.mark.parametrize(
    "line",
    [
        "", "*", "* * * *", "* * * * * *", "0 0 30 2 *", "0 0 31 2,4,6,9,11 *", "0 0 */31 * MON#2", "60 * * * *",
        "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "5-1 * * * *", "*/0 * * * *", "a b c d e", "@daily",
        "-1 * * * *", "1.5 * * * *", "0 0 * * XYZ", "* * * * MON#6", "\u0663 * * * *",
    ],
)  # fmt: skip
def test_a_line_that_means_nothing_or_never_fires_is_refused(line: str):
    with pytest.raises(BadSchedule) as refusal:
        check(line, "UTC")
    assert refusal.value.details["field"] == "cron_expression"


@pytest.mark.parametrize(
    "name", ["", "Mars/Olympus", "../../etc/passwd", "/etc/localtime", "America", "right/UTC", "zone.tab", "EST5EDT4X",
             "a\0b", "x" * 5000],
)  # fmt: skip
def test_a_zone_that_is_none_is_refused(name: str):
    with pytest.raises(BadSchedule) as refusal:
        check("* * * * *", name)
    assert refusal.value.details["field"] == "timezone"


FIELD = "0123456789*,-/L#JANMONx"


@given(st.lists(st.text(FIELD, min_size=1, max_size=8), min_size=5, max_size=5).map(" ".join))
def test_any_text_is_a_line_or_refused(line: str):
    try:
        check(line, "UTC")
    except BadSchedule:
        return
    assert next_run(line, "UTC", datetime(2025, 1, 1, tzinfo=UTC)) is not None


def by_the_clock(line: str, timezone: str, after: datetime, horizon: timedelta) -> datetime | None:
    """The same by reading the zone's clock each minute: what fires is what the clock shows, or has just jumped over."""
    place, cron = zone(timezone), CronSim(line, datetime(2000, 1, 1))
    minute, hour = line.split()[:2]
    fixed = not minute.startswith("*") and not hour.startswith("*")

    def matches(wall: datetime) -> bool:
        return (
            wall.minute in cron.minutes and wall.hour in cron.hours and wall.month in cron.months
            and cron.match_day(wall.date())
        )  # fmt: skip

    at = after.replace(second=0, microsecond=0)
    while at <= after + horizon:
        wall = at.astimezone(place)
        bare, ago = wall.replace(tzinfo=None, fold=0), (at - timedelta(minutes=1)).astimezone(place)
        shown = matches(bare) and not (fixed and wall.fold)
        gap = bare - ago.replace(tzinfo=None, fold=0)
        jumped = fixed and any(matches(bare - timedelta(minutes=n)) for n in range(1, int(gap.total_seconds() // 60)))
        if at > after and (shown or jumped):
            return at
        at += timedelta(minutes=1)
    return None


MINUTES = st.sampled_from(["*", "*/5", "*/17", "0", "30", "45", "0,30", "10-50/20", "59"])
HOURS = st.sampled_from(["*", "*/2", "*/3", "0", "1", "2", "3", "1-3", "0,2,12"])
DAYS = st.sampled_from(["* * *", "* * SUN", "* * FRI", "1 * *", "L * *", "* 3,4,10,11 *"])
TURNS = {  # moments near which a clock is put forward or back
    NEW_YORK: ("2025-03-09T07:00:00", "2025-11-02T06:00:00"), BERLIN: ("2025-03-30T01:00:00", "2025-10-26T01:00:00"),
    "Australia/Lord_Howe": ("2025-04-05T15:00:00", "2025-10-04T15:30:00"),
    "Africa/Cairo": ("2025-04-24T22:00:00", "2025-10-30T21:00:00"), "Pacific/Apia": ("2011-12-30T10:00:00",),
    "Africa/Casablanca": ("2025-02-23T02:00:00", "2025-04-06T02:00:00"),
    "UTC": ("2025-03-01T00:00:00",), "Asia/Kolkata": ("2025-03-01T00:00:00",),
}  # fmt: skip


@given(MINUTES, HOURS, DAYS, st.sampled_from(ZONES), st.integers(0, 1), st.integers(-5 * 3600, 5 * 3600))
@example("30", "2", "* * *", NEW_YORK, 0, -1)
@example("*", "*", "* * *", NEW_YORK, 1, -1801)
@hypothesis_settings(max_examples=150)
def test_what_fires_is_what_the_clock_shows(minute, hour, days, timezone, turn, offset):
    near = TURNS[timezone]
    after = datetime.fromisoformat(near[turn % len(near)]).replace(tzinfo=UTC) + timedelta(seconds=offset)
    line = f"{minute} {hour} {days}"
    horizon = timedelta(days=2)
    expected, found = by_the_clock(line, timezone, after, horizon), next_run(line, timezone, after)
    assert found is not None and found > after
    assert found == expected if expected else found > after + horizon - timedelta(minutes=1)


@given(st.datetimes(datetime(2024, 1, 1), datetime(2027, 1, 1)), st.sampled_from(ZONES), MINUTES, HOURS)
def test_the_next_run_is_after_and_nothing_lies_between(at, timezone, minute, hour):
    line, after = f"{minute} {hour} * * *", at.replace(tzinfo=UTC)
    found = next_run(line, timezone, after)
    assert found is not None and found > after and found.second == 0
    assert next_run(line, timezone, after + (found - after) / 2) == found
    assert next_run(line, timezone, found - timedelta(microseconds=1)) == found
