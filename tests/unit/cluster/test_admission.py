"""Who is let in from memory, and that nothing that was taken back ever is."""

import asyncio
from datetime import timedelta

import pytest
from test_identity import NOON, PASSWORD, QUICK, Clock

from cluster.errors import Unauthenticated
from cluster.identity import admission, tokens
from cluster.identity.generation import GENERATION_KEY
from cluster.identity.model import SYSTEM
from cluster.identity.passwords import Passwords
from cluster.identity.records import ApiKey, RevokedToken, Session
from cluster.identity.service import Identity
from cluster.store import Store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def identity(store: Store, clock: Clock) -> Identity:
    return Identity(store, clock, Passwords(QUICK))


@pytest.fixture
def elsewhere(store: Store, clock: Clock) -> Identity:
    """Another replica."""
    return Identity(store, clock, Passwords(QUICK))


@pytest.fixture
def trips(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one at every round trip of the store."""
    made: list[int] = []
    original = store._call

    async def counted(*arguments):
        made.append(1)
        return await original(*arguments)

    monkeypatch.setattr(store, "_call", counted)
    return made


async def version(store: Store) -> str:
    """What a request reads beside its limit counters."""
    return await store._redis.hget(GENERATION_KEY, "version") or ""


async def ann(identity: Identity) -> str:
    await identity.create_user("ann", PASSWORD)
    return (await identity.token("ann", PASSWORD)).access_token


async def admitted(identity: Identity, presented: str) -> bool:
    """As the gateway does it: from memory, then again if the generation has moved."""
    try:
        await identity.authenticate(presented)
        if identity.heard(await version(identity.store)):
            await identity.authenticate(presented)
    except Unauthenticated:
        return False
    return True


async def test_a_good_token_costs_one_trip_at_first_and_none_afterwards(identity, elsewhere, trips):
    token = await ann(identity)
    await elsewhere.authenticate(token)  # learns the signing key
    elsewhere._memory.clear()
    trips.clear()
    for _ in range(10):
        assert (await elsewhere.authenticate(token)).username == "ann"
    assert len(trips) == 1


async def test_a_good_key_costs_one_trip_at_first_and_none_afterwards(identity, trips):
    _, key = await identity.create_key(SYSTEM, "app", "App")
    trips.clear()
    for _ in range(10):
        who = await identity.authenticate(key)
        await identity.settled()
    assert who.owner == "client_app" and who.client_id == "app"
    assert len(trips) == 3, "the check, and reading and writing `last_used_at` in the background"


async def test_a_key_that_nobody_made_is_never_remembered(identity):
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            await identity.authenticate("ains_" + "x" * 43)
    assert not identity._memory


async def test_the_memory_is_bounded(identity, monkeypatch):
    monkeypatch.setattr(admission, "REMEMBERED", 3)
    made = [(await identity.create_key(SYSTEM, "app", "App"))[1] for _ in range(5)]
    for key in made:
        await identity.authenticate(key)
    assert list(identity._memory) == made[2:]
    await identity.settled()


async def test_expiry_is_looked_at_each_time(identity, clock):
    token = await ann(identity)
    _, key = await identity.create_key(SYSTEM, "app", "App", expires_at=NOON + timedelta(minutes=5))
    assert await admitted(identity, token) and await admitted(identity, key)
    clock.now += timedelta(minutes=5)
    assert await admitted(identity, token) and not await admitted(identity, key)
    clock.now += timedelta(seconds=tokens.ACCESS_SECONDS)
    assert not await admitted(identity, token)
    assert not identity._memory
    await identity.settled()


async def revoke_token(identity: Identity, token: str):
    await identity.revoke(token)


async def revoke_session(identity: Identity, token: str):
    who = await identity.authenticate(token)
    await identity.end_session(who, who.session_id)


async def sign_out_everywhere(identity: Identity, token: str):
    await identity.end_sessions(await identity.authenticate(token))


async def reuse_refresh(identity: Identity, _: str):
    pair = await identity.token("ann", PASSWORD)
    await identity.refresh(pair.refresh_token)
    with pytest.raises(Unauthenticated):
        await identity.refresh(pair.refresh_token)


async def disable(identity: Identity, _: str):
    await identity.disable("ann")


async def delete(identity: Identity, _: str):
    await identity.delete_user(SYSTEM, (await identity.named("ann")).user_id)


async def new_password(identity: Identity, _: str):
    await identity.set_password("ann", "another horse")


async def rotate(identity: Identity, _: str):
    await identity.rotate_signing(SYSTEM, at_once=True)


@pytest.mark.parametrize(
    "take_back", [revoke_token, revoke_session, sign_out_everywhere, disable, delete, new_password, rotate]
)
async def test_what_one_replica_takes_back_is_refused_at_the_next_request_on_another(
    identity, elsewhere, store, take_back
):
    token = await ann(identity)
    assert await admitted(elsewhere, token) and await admitted(identity, token)
    before = await version(store)
    await take_back(identity, token)
    assert await version(store) != before
    assert not await admitted(elsewhere, token) and not await admitted(identity, token)
    assert not await admitted(Identity(store, identity.clock), token), "a fresh process"


async def test_a_revoked_key_is_refused_at_the_next_request_on_another(identity, elsewhere):
    record, key = await identity.create_key(SYSTEM, "app", "App")
    assert await admitted(elsewhere, key)
    await identity.revoke_key(SYSTEM, record.key_id)
    assert not await admitted(elsewhere, key) and not await admitted(identity, key)
    await elsewhere.settled()


async def test_rights_are_those_of_now(identity, elsewhere):
    token = await ann(identity)
    assert (await elsewhere.authenticate(token)).may("tasks:write")
    of = (await identity.named("ann")).user_id
    await identity.change_user(SYSTEM, of, tier="premium", scopes=frozenset({"read"}))
    assert await admitted(elsewhere, token)
    who = await elsewhere.authenticate(token)
    assert (who.tier, who.scopes) == ("premium", {"read"})


async def test_a_check_that_a_revocation_overtakes_is_not_believed(identity, elsewhere, store, monkeypatch):
    """The records are read, then the user is disabled, then the check ends: the next request must still find out."""
    token = await ann(identity)
    await elsewhere.start()
    original, waiting, go = store.read, asyncio.Event(), asyncio.Event()

    async def slow(*wanted):
        found = await original(*wanted)
        waiting.set()
        await go.wait()
        return found

    monkeypatch.setattr(store, "read", slow)
    check = asyncio.create_task(elsewhere.authenticate(token))
    await waiting.wait()
    monkeypatch.setattr(store, "read", original)
    await identity.disable("ann")
    elsewhere.heard(await version(store))  # another request of the same replica
    go.set()
    await check
    assert not await admitted(elsewhere, token)


async def test_an_older_version_that_arrives_late_admits_nobody_who_is_out(identity, elsewhere, store):
    token = await ann(identity)
    assert await admitted(elsewhere, token)
    late = await version(store)
    await identity.disable("ann")
    assert not await admitted(elsewhere, token)
    elsewhere.heard(late)
    assert not await admitted(elsewhere, token)


async def test_nothing_heard_is_version_zero(identity):
    assert identity.heard("0") and not identity.heard("") and identity.heard("1") and identity.heard("")


async def test_a_socket_looks_for_itself(identity, elsewhere):
    token = await ann(identity)
    await elsewhere.authenticate(token)
    assert not await elsewhere.look()
    await identity.disable("ann")
    assert await elsewhere.look() and not await admitted(elsewhere, token)


async def test_changes_at_once_all_count(identity, store):
    made = [(await identity.create_key(SYSTEM, "app", "App"))[0] for _ in range(10)]
    before = int(await version(store) or 0)
    await asyncio.gather(*(identity.revoke_key(SYSTEM, record.key_id) for record in made))
    assert int(await version(store)) == before + 10
    assert all(key.revoked_at for key in (await store.page(ApiKey, "all", limit=-1)).items)


async def test_revocations_are_forgotten_when_the_tokens_have_expired(identity, store, clock):
    await identity.revoke(await ann(identity))
    clock.now += timedelta(seconds=tokens.ACCESS_SECONDS + 1)
    await identity.revoke((await identity.token("ann", PASSWORD)).access_token)
    assert await store.count(RevokedToken, "expiry") == 1


async def test_a_redis_that_lost_a_revocation_is_noticed_when_the_use_is_noted(identity, elsewhere, store, clock):
    """Without its last second Redis may count the same generation twice; the minute's note is the second net."""
    record, key = await identity.create_key(SYSTEM, "app", "App")
    assert await admitted(elsewhere, key)
    await elsewhere.settled()
    await identity.revoke_key(SYSTEM, record.key_id)
    clock.now += admission.USED_EVERY
    await elsewhere.authenticate(key)  # from memory, as if the version had stayed
    await elsewhere.settled()
    with pytest.raises(Unauthenticated):
        await elsewhere.authenticate(key)


async def test_sessions_of_one_user_are_bounded(identity, store, monkeypatch):
    monkeypatch.setattr("cluster.identity.sessions.MOST_SESSIONS", 2)
    tokens_made = [await ann(identity)]
    for _ in range(2):
        identity.clock.now += timedelta(seconds=1)
        tokens_made.append((await identity.token("ann", PASSWORD)).access_token)
    assert [await admitted(identity, token) for token in tokens_made] == [False, True, True]
    assert await store.count(Session, "expiry") == 2
