"""Idempotency keys: the rule, and what is left when a process is killed between the change and the answer."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest
from eventually import eventually

from cluster.errors import AnswerLost, IdempotencyMismatch, StillRunning
from cluster.events import Event
from cluster.idempotency import KEPT, LEASE, Attempt, Claim, Idempotency, Stage, Verdict, decide, fingerprint
from cluster.store import Record, Store
from cluster.store.companion import accompanied

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Thing(Record):
    kind: ClassVar[str] = "thing"
    thing_id: str


def made(name: str) -> Event:
    return Event(kind="thing.made", subject=name, owner="user_1", at=NOON)


def attempt(**fields) -> Attempt:
    known = {"idempotent_id": "a", "fingerprint": "f", "holder": "h", "alive_at": NOON, "expires_at": NOON + KEPT}
    return Attempt(**known | fields)


@pytest.mark.parametrize(
    ("found", "asked", "later", "expected"),
    [
        (None, "f", 0, Verdict.RUN),
        (attempt(), "f", 0, StillRunning),
        (attempt(), "other", 0, IdempotencyMismatch),
        (attempt(), "f", LEASE.total_seconds(), Verdict.RUN),
        (attempt(stage=Stage.CHANGED), "f", 1, StillRunning),
        (attempt(stage=Stage.CHANGED), "f", LEASE.total_seconds(), AnswerLost),
        (attempt(stage=Stage.ANSWERED, body="{}", status=201), "f", 60, Verdict.REPLAY),
        (attempt(stage=Stage.ANSWERED, body="{}", status=201), "other", 60, IdempotencyMismatch),
        (attempt(stage=Stage.ANSWERED, body=None, status=200), "f", 60, AnswerLost),
        (attempt(stage=Stage.ANSWERED, body="{}"), "other", KEPT.total_seconds(), Verdict.RUN),
    ],
)
def test_what_a_key_means(found, asked, later, expected):
    at = NOON + timedelta(seconds=later)
    if isinstance(expected, Verdict):
        assert decide(found, asked, at) is expected
    else:
        with pytest.raises(expected):
            decide(found, asked, at)


def test_a_fingerprint_tells_every_part_of_a_request():
    base = ("POST", "/a", b"q=1", b"{}")
    others = [("PUT", *base[1:]), ("POST", "/b", b"q=1", b"{}"), ("POST", "/a", b"", b"{}"), (*base[:3], b"[]")]
    assert len({fingerprint(*parts) for parts in (base, *others)}) == 5


@pytest.fixture
def clock():
    class Clock:
        at = NOON

        def __call__(self) -> datetime:
            return self.at

    return Clock()


@pytest.fixture
def keys(store: Store, clock) -> Idempotency:
    return Idempotency(store, clock)


async def claimed(keys: Idempotency, key: str = "k", asked: str = "f") -> Claim:
    claim = await keys.begin("user_1", key, asked)
    assert isinstance(claim, Claim)
    return claim


def kill(claim: Claim) -> None:
    """What kill -9 does to a request: nobody beats for it, and nobody writes its answer."""
    claim._beating.cancel()


async def test_the_first_answer_comes_again(keys: Idempotency):
    await (await claimed(keys)).answered(201, (("content-type", "application/json"),), b'{"id": "\xff"}')
    again = await keys.begin("user_1", "k", "f")
    assert isinstance(again, Attempt) and (again.status, again.body) == (201, '{"id": "\xff"}')
    other = await keys.begin("user_2", "k", "f")
    assert isinstance(other, Claim), "a key is its principal's"
    kill(other)


async def test_of_many_at_once_one_runs(keys: Idempotency):
    answers = await asyncio.gather(*(keys.begin("user_1", "k", "f") for _ in range(20)), return_exceptions=True)
    claims = [answer for answer in answers if isinstance(answer, Claim)]
    assert len(claims) == 1 and all(isinstance(a, Claim | StillRunning) for a in answers)
    kill(claims[0])


async def test_killed_before_anything_changed_it_runs_again(keys: Idempotency, clock):
    kill(await claimed(keys))
    with pytest.raises(StillRunning):
        await keys.begin("user_1", "k", "f")
    clock.at += LEASE
    again = await claimed(keys)
    await again.answered(200, (), b"{}")
    assert isinstance(await keys.begin("user_1", "k", "f"), Attempt)


async def test_killed_after_the_change_it_is_never_done_twice(keys: Idempotency, store: Store, clock):
    claim = await claimed(keys)
    with accompanied(claim.companion):
        await store.create(Thing(thing_id="one"), made("one"))
    kill(claim)
    clock.at += timedelta(hours=1)
    with pytest.raises(AnswerLost):
        await keys.begin("user_1", "k", "f")


async def test_a_change_that_lost_its_race_takes_no_note_along(keys: Idempotency, store: Store, clock):
    await store.create(Thing(thing_id="one"), made("one"))
    claim = await claimed(keys)
    with accompanied(claim.companion), pytest.raises(Exception, match="exists"):
        await store.create(Thing(thing_id="one"), made("one"))
    kill(claim)
    clock.at += LEASE
    kill(await claimed(keys))


async def test_a_failed_request_is_forgotten_unless_it_changed_something(keys: Idempotency, store: Store):
    await (await claimed(keys)).forget()
    claim = await claimed(keys)
    with accompanied(claim.companion):
        await store.create(Thing(thing_id="one"), made("one"))
        await store.create(Thing(thing_id="two"), made("two"))
    await claim.forget()
    with pytest.raises(AnswerLost):
        await keys.begin("user_1", "k", "f")


async def test_a_long_request_stays_claimed(keys: Idempotency, store: Store, clock, monkeypatch):
    monkeypatch.setattr("cluster.idempotency.BEAT_SECONDS", 0.01)
    claim = await claimed(keys)
    clock.at += timedelta(minutes=5)

    async def beaten() -> bool:
        return (await store.get(Attempt, claim.attempt.idempotent_id)).alive_at == clock.at

    await eventually(beaten)
    with pytest.raises(StillRunning):
        await keys.begin("user_1", "k", "f")
    with accompanied(claim.companion):
        for n in range(30):  # while beats write the same record
            await store.create(Thing(thing_id=str(n)), made(str(n)))
            await asyncio.sleep(0.002)
    await claim.answered(200, (), b"{}")
    assert isinstance(await keys.begin("user_1", "k", "f"), Attempt)


async def test_keys_expire_and_are_swept(keys: Idempotency, store: Store, clock):
    for n in range(5):
        await (await claimed(keys, f"k{n}")).answered(200, (), b"{}")
    clock.at += KEPT
    kill(await claimed(keys, "new"))
    assert await store.count(Attempt, "expiry") == 1
