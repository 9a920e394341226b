"""The rule for failed sign-ins, as a table."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.identity import throttle
from cluster.identity.throttle import Failures, code_wait_seconds, failed, network, wait_seconds, with_network

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def count(n: int, seconds_ago: float = 0) -> Failures | None:
    at = NOON - timedelta(seconds=seconds_ago)
    return Failures(failures_id="x", count=n, last_at=at, expires_at=at + throttle.MEMORY) if n else None


@pytest.mark.parametrize(
    ("pair", "account", "net", "known", "wait"),
    [
        # One who mistypes waits after the fifth time, and twice as long each time.
        (0, 0, 0, False, 0), (4, 4, 0, False, 0), (5, 5, 0, False, 1), (6, 6, 0, False, 2), (9, 9, 0, False, 16),
        (14, 14, 0, False, 512), (15, 15, 0, False, 900), (10_000, 10_000, 0, False, 900),
        # A besieged account: the first try from anywhere is free, the second is not; its owner's networks as ever.
        (0, 10_000, 0, False, 0), (1, 10_000, 0, False, 1), (2, 10_000, 0, False, 2),
        (1, 10_000, 0, True, 0), (4, 10_000, 0, True, 0), (5, 10_000, 0, True, 1),
        # A network that tries many accounts waits before the next one, at most a minute; not before an owner's own.
        (0, 0, 19, False, 0), (0, 0, 20, False, 1), (0, 0, 23, False, 8), (0, 0, 10_000, False, 60),
        (0, 0, 10_000, True, 0), (1, 1, 10_000, False, 0),
    ],
)  # fmt: skip
def test_who_waits_how_long(pair, account, net, known, wait):
    assert wait_seconds(count(pair), count(account), count(net), known, NOON) == wait


@pytest.mark.parametrize(("seconds", "wait"), [(0, 16), (6, 10), (16, 0), (3600, 0)])
def test_a_wait_passes(seconds, wait):
    assert wait_seconds(count(9, seconds), None, None, False, NOON) == wait


def test_an_hour_after_the_last_failure_all_is_forgotten():
    assert failed(count(9, 3599), "x", NOON).count == 10
    assert failed(count(9, 3600), "x", NOON).count == 1
    assert wait_seconds(count(1, 10), count(10_000, 3600), count(10_000, 3600), False, NOON) == 0


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_nothing_that_others_do_delays_an_owner_at_home_or_the_first_try_from_a_quiet_network(account, net):
    assert wait_seconds(None, count(account), count(net), True, NOON) == 0
    assert wait_seconds(None, count(account), None, False, NOON) == 0


@pytest.mark.parametrize(("failures", "known", "wait"), [(4, False, 0), (5, False, 1), (50, False, 900), (50, True, 0)])
def test_guessing_codes_is_bounded_for_all_strangers_together(failures, known, wait):
    assert code_wait_seconds(count(failures), known, NOON) == wait


@pytest.mark.parametrize(
    ("address", "net"),
    [
        ("192.0.2.7", "192.0.2.7"), ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"), ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"), ("", ""), ("unix", "unix"),
    ],
)  # fmt: skip
def test_an_ipv6_subscriber_is_one_network(address, net):
    assert network(address) == net


def test_the_last_networks_are_kept():
    known: tuple[str, ...] = ()
    for n in range(throttle.KNOWN_NETWORKS + 3):
        known = with_network(known, str(n))
    assert len(known) == throttle.KNOWN_NETWORKS and known[-1] == str(throttle.KNOWN_NETWORKS + 2)
    assert with_network(known, known[0]) == known


def test_a_place_does_not_tell_its_address():
    places = throttle.places("user_1", "192.0.2.7")
    assert len(set(places)) == 4 and not any("192" in p and "." in p for p in places)
    assert places[1] == throttle.places("user_1", "elsewhere")[1] and places[2] == throttle.places("b", "192.0.2.7")[2]
