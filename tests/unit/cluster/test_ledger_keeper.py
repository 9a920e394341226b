import asyncio
from datetime import timedelta

import pytest
from dying import Dying

from cluster.clock import utc_now
from cluster.errors import Invalid, Unavailable
from cluster.events import Event
from cluster.events.cursor import Cursor
from cluster.identity.model import SYSTEM
from cluster.store import Store
from cluster.trust.ledger import Standing, TrustRecord
from cluster.trust.service import LedgerKeeper, Trust

NOON = utc_now()


def ended(number: int, agent: str = "ada", outcome: str = "COMPLETED") -> Event:
    return Event(
        kind="task.completed" if outcome == "COMPLETED" else "task.failed", subject=f"task_{number}", owner="user_1",
        at=NOON + timedelta(seconds=number),
        data={"agent_id": agent, "outcome": outcome, "execution_time_seconds": 8.0, "timeout_seconds": 10},
    )  # fmt: skip


async def kept(store: Store) -> LedgerKeeper:
    keeper = LedgerKeeper(store)
    await keeper.open()
    while await keeper.step(wait_seconds=0):
        pass
    return keeper


async def test_outcomes_move_the_score_once_and_say_so(store: Store):
    for number in range(3):
        await store.publish(ended(number, "ada" if number else "bob", "COMPLETED" if number else "FAILED"))
    await kept(store)
    trust = Trust(store, clock=lambda: NOON + timedelta(seconds=2))
    ada, bob = await trust.standing("ada"), await trust.standing("bob")
    assert (ada.completed, ada.failed, bob.completed, bob.failed) == (2, 0, 0, 1)
    assert ada.score(ada.as_of) == pytest.approx(14.5 / 27) and bob.score(bob.as_of) == pytest.approx(12.5 / 27.5)
    moved = [e for e in await store.events() if e.kind == "trust.changed"]
    assert {e.subject: round(e.data["trust_score"], 6) for e in moved} == {"bob": 0.454545, "ada": 0.537037}
    assert await trust.verify("ada") is None and [s.standing_id for s in await trust.best(5)] == ["ada", "bob"]
    await kept(store)
    assert (await trust.standing("ada")) == ada


async def test_what_is_nobodys_outcome_moves_nobody(store: Store):
    await store.publish(ended(1, agent=""))
    await store.publish(Event(kind="task.created", subject="task_1", owner="u", at=NOON, data={"agent_id": "ada"}))
    await kept(store)
    assert await store.count(TrustRecord, "agent", "ada") == 0 and await store.count(Standing, "score") == 0


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [1, 2])
async def test_a_keeper_killed_at_any_commit_counts_nothing_twice_and_nothing_less(store: Store, at, after):
    for number in range(6):
        await store.publish(ended(number, ("ada", "bob")[number % 2]))
    dying = Dying(store.url, at, after)
    with pytest.raises(asyncio.CancelledError):
        await kept(dying)
    await dying.close()
    await store.publish(ended(6))
    await kept(store)
    trust = Trust(store)
    assert (await trust.standing("ada")).completed == 4 and (await trust.standing("bob")).completed == 3
    for agent, length in (("ada", 4), ("bob", 3)):
        assert await store.count(TrustRecord, "agent", agent) == length and await trust.verify(agent) is None
    assert (await store.get(Cursor, "ledger")).event_id


async def test_two_keepers_at_once_count_each_outcome_once(store: Store):
    for number in range(40):
        await store.publish(ended(number))
    other = Store(store.url)
    await asyncio.gather(kept(store), kept(other))
    await other.close()
    assert (await Trust(store).standing("ada")).completed == 40 and await Trust(store).verify("ada") is None


async def test_an_adjustment_beside_the_keeper_is_in_the_same_chain(store: Store):
    trust = Trust(store)
    for number in range(10):
        await store.publish(ended(number))

    async def adjust() -> None:
        for _ in range(5):
            await trust.adjust(SYSTEM, "ada", 0.01, "by hand")

    await asyncio.gather(kept(store), adjust())
    standing = await trust.standing("ada")
    assert standing.length == 15 and standing.completed == 10 and await trust.verify("ada") is None


async def test_an_adjustment_shifts_the_score_by_its_delta_and_is_bounded(store: Store):
    trust = Trust(store, clock=lambda: NOON)
    line = await trust.adjust(SYSTEM, "ada", 0.25, "good work")
    assert line.after - line.before == pytest.approx(0.25) and line.by == "user_village" and line.reason == "good work"
    for delta in (0.26, -0.76):
        with pytest.raises(Invalid):
            await trust.adjust(SYSTEM, "ada", delta, "too far")
    assert (await trust.adjust(SYSTEM, "ada", -0.75, "to the bottom")).after == pytest.approx(0)
    assert (await trust.standing("ada")).score(NOON + timedelta(days=300)) == pytest.approx(0.5, abs=1e-3)
    page = await trust.history("ada", limit=1)
    assert page.total == 2 and page.items[0].reason == "to the bottom" and await trust.trend("ada") == "decreasing"


@pytest.mark.parametrize("harm", ["edit", "drop", "tail"])
async def test_verify_finds_what_was_done_to_the_stored_chain(store: Store, harm):
    for number in range(4):
        await store.publish(ended(number))
    await kept(store)
    trust = Trust(store)
    ids = await store.ids(TrustRecord, "agent", "ada")
    if harm == "edit":
        await store.change(TrustRecord, ids[1], lambda r: r.model_copy(update={"reason": "a better one"}))
    else:
        await store.delete(TrustRecord, ids[1 if harm == "drop" else 3])
    assert await trust.verify("ada") is not None


async def test_verify_beside_a_keeper_that_writes_finds_nothing_wrong(store: Store):
    # The bug: a line that was written between the two reads looked like a forged end.
    trust, other = Trust(store), Store(store.url)
    wrong = []

    async def look() -> None:
        while (await trust.standing("ada")).length < 60:
            wrong.append(await trust.verify("ada"))

    async def write() -> None:
        for number in range(60):
            await other.publish(ended(number))
            await kept(other)

    await asyncio.gather(look(), write())
    await other.close()
    assert wrong and not any(wrong)


async def test_a_keeper_goes_on_after_the_store_was_away(store: Store):
    away = LedgerKeeper(Store("unix:///nonexistent/redis.sock"))
    with pytest.raises(Unavailable):
        await away.open()
    with pytest.raises(Unavailable):
        await away.step(0)


async def test_a_long_batch_of_many_agents_is_written_in_commits_of_bounded_size(store: Store, monkeypatch):
    monkeypatch.setattr("cluster.trust.service.AT_ONCE", 7)
    for number in range(60):
        await store.publish(ended(number, ("ada", "bob", "eve")[min(number // 20, 2)]))
    keeper = await kept(store)
    assert keeper.counted == 60
    for agent in ("ada", "bob", "eve"):
        assert (await Trust(store).standing(agent)).completed == 20 and await Trust(store).verify(agent) is None


async def test_the_farms_outcomes_and_disagreements_are_read_too(store: Store):
    told = {"agent_id": "farm_c1", "outcome": "COMPLETED", "execution_time_seconds": 3.0, "timeout_seconds": 10}
    await store.publish(Event(kind="farm.rank_completed", subject="farm_1", owner="u", at=NOON, data=told))
    await store.publish(
        Event(kind="farm.rank_timeout", subject="farm_1", owner="u", at=NOON, data=told | {"outcome": "TIMEOUT"})
    )
    await store.publish(Event(kind="farm.rank_released", subject="farm_1", owner="u", at=NOON, data=told))
    told = {"agent_id": "ada", "outcome": "DISAGREED", "others": 2}
    await store.publish(Event(kind="task.disagreed", subject="task_1_r1", owner="u", at=NOON, data=told))
    await kept(store)
    farm, ada = await Trust(store).standing("farm_c1"), await Trust(store).standing("ada")
    assert (farm.completed, farm.failed, ada.completed, ada.failed) == (1, 1, 0, 0)
    [line] = (await Trust(store).history("ada")).items
    assert (line.bad, line.reason, line.task_id) == (2.5, "Result disagreed with 2 others", "task_1_r1")


async def test_a_record_that_cannot_be_read_and_a_standing_that_was_put_back_are_named(store: Store):
    for number in range(3):
        await store.publish(ended(number))
    await kept(store)
    trust, former = Trust(store), await store.get(Standing, "ada")
    await store.publish(ended(3))
    await kept(store)
    assert (await trust.prove("ada")).checked == 4
    now = await store.get(Standing, "ada")
    await store.change(Standing, "ada", lambda _: former)
    assert "does not end" in ((await trust.prove("ada")).fault or "")
    await store.change(Standing, "ada", lambda _: now)
    ids = await store.ids(TrustRecord, "agent", "ada")
    await store._redis.hset(f"{{village}}:trust_record:{ids[2]}", "body", '{"trust_record_id":')
    verdict = await trust.prove("ada")
    assert (verdict.fault, verdict.record_id, verdict.checked) == ("a record cannot be read", ids[2], 2)
    await store._redis.hset("{village}:standing:ada", "body", "no json")
    assert (await trust.prove("ada")).fault == "the standing cannot be read"
    await store._redis.delete("{village}:standing:ada")
    assert (await trust.prove("ada")).fault == "a record cannot be read"
