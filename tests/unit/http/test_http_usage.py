import asyncio
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from eventually import eventually
from http_harness import Client, roomy
from test_contract import unlike
from test_http_audit import new_key

from cluster.errors import Unavailable
from cluster.identity import usage
from cluster.identity.usage import KEPT_DAYS, PERIODS, Usage, begin, report
from cluster.limits.limiter import Limiter
from cluster.store import Store
from cluster.store.counters import Counters, add_counts, read_counts
from cluster.store.indexes import counters_key
from serve_apps.core import Core
from serve_apps.gateway import build_gateway
from serve_apps.kit.hub import Hub
from serve_apps.kit.readiness import Readiness

NOON = datetime.now(UTC).replace(hour=14, minute=50, second=0, microsecond=0)  # counts of long ago expire at once


async def of(client: Client, headers: dict[str, str], key_id: str, period: str = "7d") -> dict:
    answer = await client.get(f"/ains/api-keys/{key_id}/usage", params={"period": period}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_usage_has_the_shape_of_its_example_and_counts_what_was_asked(client: Client, admin):
    key_id, key = await new_key(client, admin)
    for path in ("/ains/agents", "/ains/agents", "/ains/agents/nobody", "/ains/nowhere"):
        await client.get(path, headers=key)
    await client.post("/ains/tasks", json={}, headers=key)
    answer = await client.get(f"/ains/api-keys/{key_id}/usage?period=7d", headers=admin)
    assert not unlike("ains GET /ains/api-keys/{key_id}/usage", answer)
    told = answer.json()
    assert told["requests_by_endpoint"] == {
        "/ains/agents": 2, "/ains/agents/{agent_id}": 1, "/ains/tasks": 1, "unknown": 1,
    }  # fmt: skip
    assert told["total_requests"] == 5 and told["peak_requests_per_hour"] in (5, 4, 3)  # an hour may turn meanwhile
    assert (told["successful_requests"], told["failed_requests"], told["rate_limit_hits"]) == (0, 5, 0)


async def test_requests_over_the_limit_are_failed_ones_and_counted_at_their_endpoint(client: Client, admin):
    body = {"client_id": "app", "name": "a key", "scopes": ["read"], "rate_limit_per_minute": 2}
    made = (await client.post("/ains/api-keys", json=body, headers=admin)).json()
    statuses = [
        (await client.get("/ains/version", headers={"X-API-Key": made["api_key"]})).status_code for _ in range(6)
    ]
    told = await of(client, admin, made["key_id"])
    assert told["rate_limit_hits"] == told["failed_requests"] == statuses.count(429) >= 2
    assert told["successful_requests"] == statuses.count(200) and told["total_requests"] == 6
    assert told["requests_by_endpoint"] == {"/ains/version": 6}


async def test_two_gateways_count_together_and_exactly(core: Core, client: Client, admin):
    other = Core(
        settings=core.settings, store=Store(core.store.url), identity=core.identity,
        limiter=Limiter(core.store.url, roomy()), hub=Hub(core.store), readiness=Readiness({}),
    )  # fmt: skip
    key_id, key = await new_key(client, admin)
    transport = httpx.ASGITransport(build_gateway(other), client=("192.0.2.2", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://village") as second:
        for _ in range(10):
            asked = [some.get("/ains/routing/strategies", headers=key) for some in (client, second) for _ in range(7)]
            assert not [answer for answer in await asyncio.gather(*asked) if answer.status_code >= 500]
        seen = []

        async def all_told() -> bool:
            seen.append((await of(client, admin, key_id, "1d"))["total_requests"])
            return seen[-1] == 140

        assert await eventually(all_told) and max(seen) == 140  # the other's last second comes, and no more than that
        await second.aclose()
    await other.usage.close()
    await other.limiter.close()
    await other.store.close()


async def test_anothers_key_has_no_usage_and_an_unknown_period_is_named(client: Client, admin, user):
    key_id, _ = await new_key(client, admin)
    stranger = await user("ann", frozenset({"read", "keys:manage"}))
    for name in (key_id, "key_none"):
        assert (await client.get(f"/ains/api-keys/{name}/usage", headers=stranger)).status_code == 404
    wrong = await client.get(f"/ains/api-keys/{key_id}/usage?period=2d", headers=admin)
    assert wrong.status_code == 400 and "7d" in wrong.text and wrong.json()["error"]["details"]["field"] == "period"


async def test_the_peak_is_the_busiest_hour_and_the_average_over_the_period(store: Store):
    now = [NOON]
    counted = Usage(store, lambda: now[0])
    for hours_ago, count in ((0, 3), (1, 9), (30, 4), (24 * 7 + 14, 5), (24 * 7 + 15, 100)):
        now[0] = NOON - timedelta(hours=hours_ago)
        for _ in range(count):
            counted.note("key_1", "/a" if hours_ago else "/b", 200)
        await counted.flush()
    now[0] = NOON
    week = await counted.of("key_1", "7d")
    # Midnight of the day a week ago is in, the hour before it is not.
    assert (week.total, week.peak_per_hour, week.by_endpoint) == (21, 9, {"/a": 18, "/b": 3})
    assert week.per_hour == pytest.approx(21 / 168) and week.start == NOON.replace(hour=0, minute=0) - timedelta(days=7)
    day = await counted.of("key_1", "1d")
    assert (day.total, day.peak_per_hour) == (16, 9)
    assert (await counted.of("key_1", "30d")).total == 121 and (await counted.of("key_2", "90d")).total == 0


@pytest.mark.parametrize("period", PERIODS)
def test_a_report_of_nothing_is_zero(period: str):
    told = report([], period, NOON)
    assert told.total == told.peak_per_hour == told.per_hour == 0 and told.start == begin(period, NOON)


async def test_counts_expire_when_no_period_reaches_them_any_more(store: Store):
    counted = Usage(store)
    counted.note("key_1", "/a", 200)
    await counted.flush()
    day = int(time.time()) // 86400
    left = await store._redis.ttl(counters_key(usage.NAME, ("key_1", str(day))))
    assert 90 * 86400 < left <= (KEPT_DAYS + 1) * 86400


async def test_a_batch_whose_answer_was_lost_counts_once(store: Store):
    class Deaf(Store):
        lost = 2

        async def run(self, script, keys, arguments):
            answer = await super().run(script, keys, arguments)
            if self.lost:
                self.lost -= 1
                raise Unavailable("the connection broke after the script ran")
            return answer

    counted = Usage(Deaf(store.url))
    for _ in range(2):
        counted.note("key_1", "/a", 200)
        with pytest.raises(Unavailable):
            await counted.flush()
    counted.note("key_1", "/a", 500)
    assert (await counted.of("key_1", "1d")).total == 3
    await counted.store.close()


async def test_what_was_counted_while_the_store_was_away_is_added_by_itself(store: Store):
    counted = Usage(Store("unix:///nonexistent/redis.sock"))
    counted.note("key_1", "/a", 200)
    with pytest.raises(Unavailable):
        await counted.flush()
    counted.note("key_1", "/a", 200)
    counted.store = store
    there = Usage(store)

    async def added() -> bool:
        return (await there.of("key_1", "1d")).total == 2

    assert await eventually(added)


async def test_batches_of_many_writers_add_up(store: Store):
    async def write(writer: int) -> None:
        for batch in range(1, 21):
            hashes = [Counters(("k", str(day)), 2**33, {"a": 1, "b": writer}) for day in range(3)]
            await add_counts(store, "test", str(writer), batch, hashes)

    await asyncio.gather(*(write(writer) for writer in range(5)))
    assert await read_counts(store, "test", [("k", "0"), ("k", "2"), ("k", "9")]) == [{"a": 100, "b": 200}] * 2 + [{}]


async def test_counting_costs_microseconds(store: Store):
    counted = Usage(store)
    begun = time.perf_counter()
    for number in range(5000):
        counted.note("key_1", f"/{number % 20}", 200)
    # It takes 1 to 2; a machine that stalls may add to it, a round trip or a task would be beyond this.
    assert (time.perf_counter() - begun) / 5000 < 50e-6
    await counted.close()
