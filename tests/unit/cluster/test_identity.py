"""Identity beneath HTTP: passwords, the first admin, what a token costs."""

import asyncio
import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import AlreadyExists, Invalid, Unauthenticated
from cluster.identity import keys, tokens
from cluster.identity.admin import ensure_admin
from cluster.identity.model import FINE_SCOPES, SCOPES, Principal
from cluster.identity.passwords import Passwords
from cluster.identity.records import Session, user_id
from cluster.identity.service import Identity
from cluster.identity.signing import SigningKey
from cluster.settings import Settings
from cluster.store import Store

PASSWORD = "correct horse"
QUICK = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def identity(store: Store, clock: Clock) -> Identity:
    return Identity(store, clock, Passwords(QUICK))


async def test_every_process_signs_with_the_same_secret(identity, store, clock):
    await identity.create_user("ann", PASSWORD)
    others = [Identity(store, clock, Passwords(QUICK)) for _ in range(5)]
    await asyncio.gather(*(other.start() for other in [*others, identity]))
    token = (await identity.token("ann", PASSWORD)).access_token
    assert {(await other.authenticate(token)).username for other in others} == {"ann"}


async def test_a_name_is_taken_whatever_its_case(identity):
    await identity.create_user("Ann@Village.local", PASSWORD)
    with pytest.raises(AlreadyExists):
        await identity.create_user("ann@village.LOCAL", PASSWORD)
    assert (await identity.token("ANN@village.local", PASSWORD)).scopes == ["read", "write"]


async def test_a_scope_that_nobody_knows_is_refused(identity):
    with pytest.raises(Invalid):
        await identity.create_user("ann", PASSWORD, frozenset({"fly"}))


async def test_expired_sessions_are_forgotten(identity, store, clock):
    await identity.create_user("ann", PASSWORD)
    await identity.token("ann", PASSWORD)
    clock.now += tokens.REFRESH + timedelta(seconds=1)
    await identity.token("ann", PASSWORD)
    assert await store.count(Session, "user", user_id("ann")) == 1


async def test_the_first_admin_is_made_once_and_its_password_kept_for_the_owner_alone(identity, tmp_path: Path):
    settings = Settings(home=tmp_path)
    file = await ensure_admin(identity, settings)
    kept = json.loads(file.read_text())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert await ensure_admin(identity, settings) == file and json.loads(file.read_text()) == kept
    assert "admin" in (await identity.token(kept["username"], kept["password"])).scopes


async def test_an_admin_half_made_by_a_crash_gets_the_password_of_the_file(identity, store, tmp_path: Path):
    settings = Settings(home=tmp_path)
    file = await ensure_admin(identity, settings)
    kept = json.loads(file.read_text())
    await store._redis.flushall()
    identity._signing = None
    await ensure_admin(identity, settings)
    assert await identity.holds(kept["username"], kept["password"])


async def test_a_password_from_the_settings_wins(identity, tmp_path: Path):
    file = await ensure_admin(identity, Settings(home=tmp_path))
    settings = Settings(home=tmp_path, admin_password="chosen by hand")
    for _ in range(2):
        assert await ensure_admin(identity, settings) is None
    assert not file.exists() and await identity.holds(settings.admin_username, "chosen by hand")


async def test_a_name_that_nobody_has_costs_a_hash_too(monkeypatch):
    passwords, verified = Passwords(QUICK), []
    real = passwords._verify
    monkeypatch.setattr(passwords, "_verify", lambda kept, password: verified.append(kept) or real(kept, password))
    assert not await passwords.matches(None, "guess")
    assert verified and verified[0].startswith("$argon2id$")


async def test_the_decoy_is_no_way_in():
    passwords = Passwords(QUICK)
    await passwords.matches(None, "x")
    assert not await passwords.matches(None, passwords._decoy) and not await passwords.matches("", "x")


@given(st.binary(max_size=200))
def test_nothing_that_is_no_token_is_read_as_one(noise):
    with pytest.raises(Unauthenticated):
        tokens.read(noise.decode("latin-1"), "access", SigningKey(kid="k", secret="s" * 32, since=NOON), NOON)


def test_keys_are_long_and_their_ids_follow_from_them():
    key = keys.new_key()
    assert key.startswith("ains_") and len(key) == 48
    assert keys.key_id(keys.digest(key)) == keys.key_id(keys.digest(key)) and len(keys.key_id(keys.digest(key))) == 28


@pytest.mark.parametrize(
    ("held", "may", "may_not"),
    [
        ({"read"}, {"tasks:read", "models:read"}, {"tasks:write", "audit:read", "keys:manage", "agents:admin"}),
        ({"write"}, {"tasks:write", "webhooks:manage"}, {"tasks:read", "keys:manage", "agents:admin"}),
        ({"admin"}, set(SCOPES), set()),
        ({"tasks:read"}, {"tasks:read"}, FINE_SCOPES - {"tasks:read"}),
    ],
)
def test_wide_scopes_imply_the_fine_ones(held, may, may_not):
    who = Principal(principal_id="u", owner="u", username="u", scopes=frozenset(held))
    assert all(who.may(scope) for scope in may) and not any(who.may(scope) for scope in may_not)
