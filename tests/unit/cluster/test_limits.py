"""Limits: the policy as data, and counting that any number of processes share."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.errors import Unavailable
from cluster.identity.model import Principal
from cluster.limits import policy
from cluster.limits.counters import storage_url
from cluster.limits.limiter import Limiter, LimitState
from cluster.limits.policy import Policy, Window

NOON = datetime(2026, 1, 1, 12, 0, 20, tzinfo=UTC)
SHIPPED = policy.load()


def who(**fields) -> Principal:
    return Principal(principal_id="user_1", owner="user_1", username="ann", **fields)


def limits(dialect: str, principal: Principal | None, bucket: str = "requests") -> dict[str, int]:
    return {window.span: window.limit for window in SHIPPED.windows(dialect, bucket, principal)}


@pytest.mark.parametrize(
    ("principal", "minute", "hour"),
    [
        (None, 60, 1000),
        (who(), 60, 1000),
        (who(tier="premium"), 200, 5000),
        (who(tier="enterprise"), 500, 10000),
        (who(scopes=frozenset({"admin"})), 500, 10000),
        (who(per_minute=7, per_hour=70), 7, 70),
    ],
)
def test_aivillage_and_ains_go_by_tier_and_a_key_by_its_own_numbers(principal, minute, hour):
    assert limits("aivillage", principal) == limits("ains", principal) == {"minute": minute, "hour": hour}


def test_the_other_dialects_have_the_numbers_of_their_documents():
    assert limits("aifarm", who()) == {"minute": 60}
    assert limits("orchestra", who()) == {"minute": 1000, "second": 50}
    assert [limits("forge", who(), b)["minute"] for b in ("read", "write", "upload")] == [100, 50, 10]


def test_an_admin_is_never_held_below_the_enterprise_tier():
    admin = who(scopes=frozenset({"admin"}))
    assert limits("aifarm", admin) == {"minute": 500} and limits("orchestra", admin) == {"minute": 1000, "second": 50}


def test_a_policy_with_a_word_that_nobody_knows_is_refused():
    with pytest.raises(ValidationError):
        Policy.model_validate({"tiers": {}, "burst": 5})
    with pytest.raises(ValidationError):
        Policy.model_validate({"tiers": {"golden": {"minute": 1}}})


@given(st.integers(1, 1000), st.integers(1, 2000))
def test_what_remains_is_never_negative(limit, used):
    state = LimitState("minute", limit, used, 0, 1)
    assert state.remaining == max(0, limit - used) and state.exceeded == (used > limit)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("unix:///tmp/r.sock", "async+redis+unix:///tmp/r.sock"),
        ("redis://:secret@h:1/2", "async+redis://:secret@h:1/2"),
        ("rediss://h:1", "async+rediss://h:1"),
    ],
)
def test_any_url_of_the_store_serves_the_limiter(url, expected):
    assert storage_url(url) == expected


async def test_two_limiters_never_let_through_more_than_one_would(store):
    limiters = [Limiter(store.url, SHIPPED, lambda: NOON) for _ in range(2)]
    windows = (Window(span="minute", limit=20), Window(span="hour", limit=1000))
    answers = await asyncio.gather(*(limiters[i % 2].hit(("t", "user_1"), windows) for i in range(60)))
    assert sum(not any(state.exceeded for state in counted.states) for counted in answers) == 20
    assert sorted(counted.states[0].used for counted in answers) == list(range(1, 61)), "each count was given out once"
    for limiter in limiters:
        await limiter.close()


async def test_a_refused_request_does_not_eat_the_wider_window(store):
    limiter = Limiter(store.url, SHIPPED, lambda: NOON)
    windows = (Window(span="minute", limit=2), Window(span="hour", limit=100))
    for _ in range(10):
        await limiter.hit(("t", "user_1"), windows)
    limiter.clock = lambda: NOON + timedelta(minutes=1)
    assert [state.used for state in (await limiter.hit(("t", "user_1"), windows)).states] == [1, 3]
    await limiter.close()


async def test_counting_costs_one_round_trip_and_brings_a_field_along(store):
    limiter = Limiter(store.url, SHIPPED, lambda: NOON)
    windows = (Window(span="minute", limit=2), Window(span="hour", limit=100))
    await limiter.hit(("t", "user_1"), windows)  # loads the script
    await store._redis.hset("{village}:some:thing", "version", "7")
    sent = []
    connection = await limiter._counters._redis.connection_pool.get_connection()
    send = connection.send_packed_command
    connection.send_packed_command = lambda command, **options: (sent.append(command), send(command, **options))[1]
    await limiter._counters._redis.connection_pool.release(connection)
    assert (await limiter.hit(("t", "user_1"), windows, ("{village}:some:thing", "version"))).beside == "7"
    assert (await limiter.hit(("u", "user_1"), windows, ("{village}:some:thing", "nothing"))).beside == ""
    assert len(sent) == 2
    await limiter.close()


async def test_what_waits_goes_along_in_the_next_round_trip(store):
    limiter = Limiter(store.url, SHIPPED, lambda: NOON)
    windows = (Window(span="minute", limit=1000), Window(span="hour", limit=1000))
    await limiter.hit(("t", "warm"), windows)
    before = (await store._redis.info("stats"))["total_reads_processed"]
    answers = await asyncio.gather(*(limiter.hit(("t", f"user_{n % 3}"), windows) for n in range(90)))
    after = (await store._redis.info("stats"))["total_reads_processed"]
    assert after - before < 10, "90 requests at once"
    assert sorted(counted.states[1].used for counted in answers) == sorted([*range(1, 31)] * 3)
    await limiter.close()


async def test_a_cancelled_request_holds_up_nobody(store):
    limiter = Limiter(store.url, SHIPPED, lambda: NOON)
    windows = (Window(span="minute", limit=1000),)
    hits = [asyncio.create_task(limiter.hit(("t", "user"), windows)) for _ in range(10)]
    await asyncio.sleep(0)
    for hit in hits[::2]:
        hit.cancel()
    used = [counted.states[0].used for counted in await asyncio.gather(*hits[1::2])]
    assert len(set(used)) == 5 and max(used) <= 10
    await limiter.close()


async def test_a_redis_that_forgot_the_script_counts_on(store):
    limiter = Limiter(store.url, SHIPPED, lambda: NOON)
    windows = (Window(span="minute", limit=2), Window(span="hour", limit=100))
    await limiter.hit(("t", "user_1"), windows)
    await store._redis.script_flush()
    assert [state.used for state in (await limiter.hit(("t", "user_1"), windows)).states] == [2, 2]
    await limiter.close()


async def test_windows_are_aligned_to_the_clock(store):
    limiter = Limiter(store.url, SHIPPED, lambda: NOON)
    (state,) = (await limiter.hit(("t", "user_1"), (Window(span="minute", limit=1),))).states
    assert (state.reset_at, state.reset_after) == (int(datetime(2026, 1, 1, 12, 1, tzinfo=UTC).timestamp()), 40)
    limiter.clock = lambda: NOON + timedelta(seconds=40)
    assert not (await limiter.hit(("t", "user_1"), (Window(span="minute", limit=1),))).states[0].exceeded
    await limiter.close()


async def test_principals_do_not_share_a_count(store):
    limiter = Limiter(store.url, SHIPPED, lambda: NOON)
    for name in ("user_1", "user_2"):
        (state,) = (await limiter.hit(("t", name), (Window(span="minute", limit=1),))).states
        assert state.used == 1
    await limiter.close()


async def test_without_a_store_a_request_is_refused_and_does_not_hang(tmp_path):
    limiter = Limiter(f"unix://{tmp_path}/nobody.sock", SHIPPED)
    async with asyncio.timeout(5):
        with pytest.raises(Unavailable):
            await limiter.hit(("t", "user_1"), (Window(span="minute", limit=1),))
