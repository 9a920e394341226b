"""Signing in: guessing is slow, owners are not locked out, second factors are good once, and all of it is told."""

import asyncio
from contextlib import contextmanager
from datetime import timedelta

import pyotp
import pytest
from argon2 import PasswordHasher
from test_identity import PASSWORD, QUICK, Clock

from cluster.errors import Conflict, Forbidden, Invalid, LimitExceeded, NotFound, Unauthenticated
from cluster.identity.model import SYSTEM, Principal
from cluster.identity.passwords import COMMON, Passwords, check
from cluster.identity.records import SecondFactor, Session, User, user_id
from cluster.identity.service import Identity
from cluster.identity.throttle import BESIEGED, FREE, Failures
from cluster.origin import Origin, within
from cluster.store import Store

HOME, AWAY = "192.0.2.1", "198.51.100.7"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def identity(store: Store, clock: Clock) -> Identity:
    return Identity(store, clock, Passwords(QUICK))


@contextmanager
def at(address: str):
    with within(Origin(address=address, user_agent="test")):
        yield


async def told(store: Store, *kinds: str) -> list[tuple[str, dict]]:
    """Events of these kinds with their data."""
    return [(event.kind, event.data) for event in await store.events() if event.kind in kinds]


async def fails(identity: Identity, times: int, username: str = "ann", password: str = "wrong") -> None:
    for _ in range(times):
        with pytest.raises(Unauthenticated):
            await identity.token(username, password)


async def signed_in(identity: Identity, username: str = "ann", code: str | None = None) -> Principal:
    return await identity.authenticate((await identity.token(username, PASSWORD, code)).access_token)


async def test_guessing_from_one_address_waits_and_the_right_password_waits_with_it(identity, clock):
    await identity.create_user("ann", PASSWORD)
    with at(AWAY):
        await fails(identity, FREE)
        with pytest.raises(LimitExceeded) as refusal:
            await identity.token("ann", PASSWORD)
        assert refusal.value.details["retry_after_seconds"] == 1
        clock.now += timedelta(seconds=1)
        await fails(identity, 1)
        clock.now += timedelta(seconds=1)
        with pytest.raises(LimitExceeded):
            await identity.token("ann", PASSWORD)
        clock.now += timedelta(seconds=1)
        await identity.token("ann", PASSWORD)
        await fails(identity, FREE)  # a sign-in starts the count again


async def test_the_owner_gets_in_from_elsewhere_while_somebody_guesses(identity):
    await identity.create_user("ann", PASSWORD)
    with at(HOME):
        await identity.token("ann", PASSWORD)
    for n in range(BESIEGED + 5):
        with at(f"198.51.100.{n}"):
            await fails(identity, 1)
            if n >= BESIEGED:
                with pytest.raises(LimitExceeded):
                    await identity.token("ann", "wrong")
    with at("203.0.113.9"):
        await identity.token("ann", PASSWORD)
    with at(HOME):
        await fails(identity, FREE - 1)
        await identity.token("ann", PASSWORD)


async def test_an_address_that_tries_many_accounts_is_slowed_and_its_owner_is_not(identity):
    await identity.create_user("ann", PASSWORD)
    await identity.create_user("bob", PASSWORD)
    with at(HOME):
        await identity.token("ann", PASSWORD)
        for n in range(20):
            await fails(identity, 1, f"nobody{n}")
        with pytest.raises(LimitExceeded):
            await identity.token("bob", PASSWORD)
        await identity.token("ann", PASSWORD)


async def test_guesses_sent_at_once_count_like_guesses_in_turn(identity):
    await identity.create_user("ann", PASSWORD)
    with at(AWAY):
        answers = await asyncio.gather(*(identity.token("ann", "wrong") for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(answer, Unauthenticated) for answer in answers) == FREE
    assert sum(isinstance(answer, LimitExceeded) for answer in answers) == 20 - FREE


async def test_many_good_sign_ins_at_once_all_succeed(identity):
    await identity.create_user("ann", PASSWORD)
    await asyncio.gather(*(identity.token("ann", PASSWORD) for _ in range(20)))


async def test_another_replica_counts_the_same_failures(identity, store, clock):
    await identity.create_user("ann", PASSWORD)
    await fails(identity, FREE)
    with pytest.raises(LimitExceeded):
        await Identity(store, clock, Passwords(QUICK)).token("ann", PASSWORD)


async def test_failures_are_forgotten(identity, store, clock):
    await fails(identity, 2, "nobody")
    assert await store.count(Failures, "expiry") == 3
    clock.now += timedelta(hours=1)
    await fails(identity, 1, "somebody")
    assert await store.count(Failures, "expiry") == 3
    assert all(f.count == 1 for f in (await store.page(Failures, "expiry")).items)


class Hashes(PasswordHasher):
    """Counts the work."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=64, parallelism=1)
        self.verified = self.hashed = 0

    def verify(self, hash, password):
        self.verified += 1
        return super().verify(hash, password)

    def hash(self, password, *, salt=None):
        self.hashed += 1
        return super().hash(password, salt=salt)


async def test_an_unknown_a_disabled_a_deleted_user_and_a_wrong_password_take_the_same_work(store, clock):
    hashes = Hashes()
    identity = Identity(store, clock, Passwords(hashes))
    for name in ("ann", "out", "gone"):
        await identity.create_user(name, PASSWORD)
    await identity.disable("out")
    await identity.delete_user(SYSTEM, user_id("gone"))
    await fails(identity, 1, "nobody")  # makes the decoy, once per process
    messages = set()
    for name in ("ann", "nobody", "out", "gone"):
        before = (hashes.verified, hashes.hashed)
        with pytest.raises(Unauthenticated) as refusal:
            await identity.token(name, "wrong")
        messages.add((refusal.value.message, str(refusal.value.details)))
        assert (hashes.verified, hashes.hashed) == (before[0] + 1, before[1]), name
    assert len(messages) == 1
    with pytest.raises(Unauthenticated) as refusal:
        await identity.token("out", PASSWORD)
    assert refusal.value.message == "wrong username or password", "being disabled is not told"


async def test_a_hash_of_old_parameters_is_renewed_at_the_next_sign_in(identity, store, clock):
    await identity.create_user("ann", PASSWORD)
    old = (await identity.named("ann")).password_hash
    pair = await identity.token("ann", PASSWORD)
    assert (await identity.named("ann")).password_hash == old
    stronger = Identity(store, clock, Passwords(PasswordHasher(time_cost=2, memory_cost=128, parallelism=1)))
    await stronger.token("ann", PASSWORD)
    renewed = (await identity.named("ann")).password_hash
    assert renewed != old and "t=2" in renewed
    assert await identity.authenticate(pair.access_token), "the same password: nothing ends"
    await stronger.token("ann", PASSWORD)


@pytest.mark.parametrize(
    ("password", "good"),
    [
        ("seven77", False), ("eight888", True), ("x" * 1025, False), ("xy" * 512, True), ("aaaaaaaaaaaa", False),
        ("Ann@Village.local", False), ("  ann@village.LOCAL", True), ("password123", False), ("PASSWORD123", False),
        ("ｐａｓｓｗｏｒｄ123", False), ("пароль надёжный", True), ("nul\0nul\0nul", True),
    ],
)  # fmt: skip
def test_what_makes_a_password(password, good):
    if good:
        check(password, "ann@village.local")
        return
    with pytest.raises(Invalid) as refusal:
        check(password, "ann@village.local")
    assert refusal.value.details["field"] == "password" and password not in str(refusal.value.details)


def test_the_local_part_of_a_name_is_no_password_and_common_ones_are_long_enough_to_matter():
    with pytest.raises(Invalid):
        check("longname", "longname@village.local")
    assert all(len(word) >= 8 for word in COMMON.split())


async def test_what_follows_a_null_byte_in_a_password_counts(identity):
    await identity.create_user("ann", "nul\0one-two")
    await fails(identity, 1, password="nul\0one-three")
    await identity.token("ann", "nul\0one-two")


@pytest.mark.parametrize(
    "name", ["аnn", "ann ", " ann", "a\0n", "an\nn", "ann\u200b", "", "ＡＮＮ", "-ann", "a" * 257, "a/b", "<ann>"]
)
async def test_a_name_that_may_look_like_another_is_refused(identity, name):
    with pytest.raises(Invalid):
        await identity.create_user(name, PASSWORD)


async def test_a_password_change_keeps_the_session_that_made_it_and_ends_all_others(identity):
    await identity.create_user("ann", PASSWORD)
    mine, other = await identity.token("ann", PASSWORD), await identity.token("ann", PASSWORD)
    who = await identity.authenticate(mine.access_token)
    with pytest.raises(Forbidden):
        await identity.change_password(who, "wrong", "another horse")
    with pytest.raises(Invalid):
        await identity.change_password(who, PASSWORD, "short")
    await identity.change_password(who, PASSWORD, "another horse")
    assert await identity.authenticate(mine.access_token) and await identity.refresh(mine.refresh_token)
    for call in (identity.authenticate(other.access_token), identity.refresh(other.refresh_token)):
        with pytest.raises(Unauthenticated):
            await call
    assert len(await identity.sessions(who)) == 1
    await identity.token("ann", "another horse")


async def test_guessing_the_old_password_with_a_stolen_token_waits_too(identity):
    await identity.create_user("ann", PASSWORD)
    who = await signed_in(identity)
    with at(AWAY):
        for _ in range(FREE):
            with pytest.raises(Forbidden):
                await identity.change_password(who, "wrong", "another horse")
        with pytest.raises(LimitExceeded):
            await identity.change_password(who, PASSWORD, "another horse")


async def test_an_api_key_is_nobody_with_a_password(identity):
    _, key = await identity.create_key(SYSTEM, "app", "App")
    who = await identity.authenticate(key)
    for call in (
        identity.themselves(who), identity.sessions(who), identity.enroll(who), identity.end_sessions(who),
        identity.change_password(who, "", "another horse"),
    ):  # fmt: skip
        with pytest.raises(Forbidden):
            await call
    await identity.settled()


async def test_a_deleted_users_name_and_id_are_never_given_again(identity):
    await identity.create_user("ann", PASSWORD)
    await identity.delete_user(SYSTEM, user_id("ann"))
    with pytest.raises(Conflict):
        await identity.create_user("ANN", PASSWORD)
    for call in (identity.named("ann"), identity.set_password("ann", "another horse"), identity.disable("ann")):
        with pytest.raises(NotFound):
            await call
    assert (await identity.list_users()).total == 0
    await fails(identity, 1, password=PASSWORD)


async def test_an_admin_cannot_shut_himself_out(identity):
    await identity.create_user("root", PASSWORD, frozenset({"admin"}))
    who = await signed_in(identity, "root")
    for change in ({"disabled": True}, {"scopes": frozenset({"read"})}):
        with pytest.raises(Conflict):
            await identity.change_user(who, who.owner, **change)
    with pytest.raises(Conflict):
        await identity.delete_user(who, who.owner)
    assert (await identity.change_user(who, who.owner, tier="premium")).tier == "premium"


# Second factors


async def with_factor(identity: Identity, clock: Clock) -> tuple[pyotp.TOTP, list[str], Principal]:
    """ann, signed in, with a second factor whose newest code is spent."""
    await identity.create_user("ann", PASSWORD)
    who = await signed_in(identity)
    secret, uri = await identity.enroll(who)
    assert uri.startswith("otpauth://totp/AIVillage:ann?") and secret in uri
    codes = pyotp.TOTP(secret)
    return codes, await identity.verify_factor(who, codes.at(clock.now)), who


async def test_a_secret_that_was_not_verified_asks_nobody_for_a_code(identity, clock):
    await identity.create_user("ann", PASSWORD)
    who = await signed_in(identity)
    await identity.enroll(who)
    with pytest.raises(Forbidden):
        await identity.verify_factor(who, "000000")
    await identity.token("ann", PASSWORD)


async def test_with_a_second_factor_the_password_alone_opens_nothing_and_is_not_told_early(identity, clock):
    codes, _, _ = await with_factor(identity, clock)
    clock.now += timedelta(seconds=30)
    with pytest.raises(Unauthenticated) as refusal:
        await identity.token("ann", PASSWORD)
    assert refusal.value.details == {"mfa_required": True}
    with pytest.raises(Unauthenticated) as refusal:
        await identity.token("ann", "wrong", codes.at(clock.now))
    assert "mfa_required" not in refusal.value.details
    await identity.token("ann", PASSWORD, codes.at(clock.now))


async def test_a_code_is_good_once_and_older_ones_go_with_it(identity, clock):
    codes, _, _ = await with_factor(identity, clock)
    used = codes.at(clock.now)
    with pytest.raises(Unauthenticated):
        await identity.token("ann", PASSWORD, used)  # it was spent on the enrolment
    clock.now += timedelta(seconds=60)
    earlier, now = codes.at(clock.now - timedelta(seconds=30)), codes.at(clock.now)
    await identity.token("ann", PASSWORD, now)
    for code in (now, earlier):
        with pytest.raises(Unauthenticated):
            await identity.token("ann", PASSWORD, code)


async def test_of_two_sign_ins_with_one_code_one_wins(identity, store, clock):
    codes, _, _ = await with_factor(identity, clock)
    clock.now += timedelta(seconds=30)
    replicas = [identity, *(Identity(store, clock, Passwords(QUICK)) for _ in range(3))]
    answers = await asyncio.gather(
        *(one.token("ann", PASSWORD, codes.at(clock.now)) for one in replicas), return_exceptions=True
    )
    assert sum(isinstance(answer, Unauthenticated) for answer in answers) == 3


@pytest.mark.parametrize(("off_seconds", "good"), [(-60, False), (-30, True), (0, True), (30, True), (60, False)])
async def test_a_clock_may_be_off_by_one_step(identity, clock, off_seconds, good):
    codes, _, _ = await with_factor(identity, clock)
    clock.now += timedelta(minutes=10)
    code = codes.at(clock.now + timedelta(seconds=off_seconds))
    if good:
        await identity.token("ann", PASSWORD, code)
    else:
        with pytest.raises(Unauthenticated):
            await identity.token("ann", PASSWORD, code)


async def test_a_backup_code_is_good_once_and_kept_as_a_hash_only(identity, store, clock):
    _, backup, who = await with_factor(identity, clock)
    assert len(set(backup)) == 10
    kept = (await store.get(SecondFactor, who.owner)).model_dump_json()
    assert not any(code in kept or code.replace("-", "") in kept for code in backup)
    await identity.token("ann", PASSWORD, backup[0].lower())
    with pytest.raises(Unauthenticated):
        await identity.token("ann", PASSWORD, backup[0])
    await identity.token("ann", PASSWORD, backup[1])


async def test_switching_it_on_ends_the_sessions_that_never_gave_a_code(identity, clock):
    await identity.create_user("ann", PASSWORD)
    stolen, who = await identity.token("ann", PASSWORD), await signed_in(identity)
    secret, _ = await identity.enroll(who)
    await identity.verify_factor(who, pyotp.TOTP(secret).at(clock.now))
    for call in (identity.refresh(stolen.refresh_token), identity.authenticate(stolen.access_token)):
        with pytest.raises(Unauthenticated):
            await call
    assert len(await identity.sessions(who)) == 1


async def test_switching_it_off_needs_the_password_and_a_code(identity, clock):
    codes, _, who = await with_factor(identity, clock)
    clock.now += timedelta(seconds=30)
    for password, code in (("wrong", codes.at(clock.now)), (PASSWORD, "000000"), (PASSWORD, "nonsense")):
        with pytest.raises(Forbidden):
            await identity.disable_factor(who, password, code)
    with pytest.raises(Conflict):
        await identity.enroll(who)
    await identity.disable_factor(who, PASSWORD, codes.at(clock.now))
    await identity.token("ann", PASSWORD)
    await identity.enroll(who)


async def test_an_admin_helps_who_lost_both_the_app_and_the_codes(identity, store, clock):
    codes, _, who = await with_factor(identity, clock)
    assert not (await identity.remove_factor(who.owner)).mfa
    assert await store.find(SecondFactor, who.owner) is None
    await identity.token("ann", PASSWORD)
    await identity.remove_factor(who.owner)
    assert (await told(store, "user.mfa_disabled")) == [("user.mfa_disabled", {"username": "ann", "by": "admin"})]
    assert codes.secret != (await identity.enroll(who))[0]


async def test_guessing_codes_from_many_addresses_waits(identity, clock):
    await with_factor(identity, clock)
    clock.now += timedelta(minutes=1)
    for n in range(5):
        with at(f"198.51.100.{n}"), pytest.raises(Unauthenticated):
            await identity.token("ann", PASSWORD, "000000")
    with at("198.51.100.99"), pytest.raises(LimitExceeded):
        await identity.token("ann", PASSWORD, "000000")


# What is told


async def test_every_change_is_told_in_its_commit_and_no_event_holds_a_secret(identity, store, clock):
    codes, backup, who = await with_factor(identity, clock)
    clock.now += timedelta(seconds=30)
    with at(AWAY):
        await fails(identity, 1)
        pair = await identity.token("ann", PASSWORD, codes.at(clock.now))
        with pytest.raises(Unauthenticated):
            await identity.token("ann", PASSWORD, "000000")
    await identity.refresh(pair.refresh_token)
    with pytest.raises(Unauthenticated):
        await identity.refresh(pair.refresh_token)
    await identity.change_password(who, PASSWORD, "another horse")
    await identity.disable_factor(who, "another horse", backup[0])
    await identity.revoke((await identity.token("ann", "another horse")).access_token)
    record, key = await identity.create_key(SYSTEM, "app", "App")
    await identity.revoke_key(SYSTEM, record.key_id)
    await identity.change_user(SYSTEM, who.owner, tier="premium", scopes=frozenset({"read"}))
    await identity.disable("ann")
    await identity.change_user(SYSTEM, who.owner, disabled=False)
    await identity.rotate_signing(SYSTEM)
    await identity.delete_user(SYSTEM, who.owner)
    events = await store.events()
    kinds = [event.kind for event in events]
    assert kinds == [
        "user.created", "session.started", "user.mfa_enabled", "login.failed", "session.started", "login.mfa_failed",
        "session.revoked", "user.password_changed", "user.mfa_disabled", "session.started", "token.revoked",
        "key.created", "key.revoked", "user.updated", "user.disabled", "user.enabled", "signing_key.rotated",
        "user.deleted",
    ]  # fmt: skip
    assert {event.owner for event in events if event.kind.startswith(("user", "session", "login", "token"))} == {
        who.owner
    }
    failed = events[3]
    assert failed.origin.address == AWAY and failed.data["reason"] == "unknown_user_or_password"
    assert events[6].data["reason"] == "refresh_token_reused"
    assert events[13].data["changed"] == {"tier": ["standard", "premium"], "scopes": [["read", "write"], ["read"]]}
    text = "".join(event.model_dump_json() for event in events)
    signers = await identity._read_signing()
    secrets = [PASSWORD, "another horse", key, pair.access_token, pair.refresh_token, codes.secret, *backup]
    assert not any(secret in text for secret in [*secrets, *(signer.secret for signer in signers.keys)])
    assert "$argon2" not in text


async def test_a_refusal_to_look_is_told_as_throttled(identity, store):
    await fails(identity, FREE, "nobody")
    with pytest.raises(LimitExceeded):
        await identity.token("nobody", "x")
    assert (await told(store, "login.failed"))[-1][1] == {
        "username": "nobody", "reason": "throttled", "during": "sign_in"
    }  # fmt: skip


async def test_a_process_that_dies_between_two_commits_leaves_no_session_alive(identity, store, monkeypatch):
    """The era ends every session with the user's own commit; clearing the list afterwards may never happen."""
    await identity.create_user("ann", PASSWORD)
    pair = await identity.token("ann", PASSWORD)

    async def dies(_):
        raise SystemError

    monkeypatch.setattr(identity, "_clear_sessions", dies)
    with pytest.raises(SystemError):
        await identity.disable("ann")
    assert await store.count(Session, "user", user_id("ann")) == 1
    assert (await store.get(User, user_id("ann"))).disabled
    with pytest.raises(Unauthenticated):
        await identity.authenticate(pair.access_token)
    await identity.change_user(SYSTEM, user_id("ann"), disabled=False)
    for call in (identity.authenticate(pair.access_token), identity.refresh(pair.refresh_token)):
        with pytest.raises(Unauthenticated):
            await call


async def test_a_password_that_changes_while_it_is_checked_opens_nothing(identity, store, clock, monkeypatch):
    await identity.create_user("ann", PASSWORD)
    elsewhere, renewed = Identity(store, clock, Passwords(QUICK)), identity._passwords.renewed

    async def meanwhile(kept, password):
        await elsewhere.set_password("ann", "another horse")
        return await renewed(kept, password)

    monkeypatch.setattr(identity._passwords, "renewed", meanwhile)
    await fails(identity, 1, password=PASSWORD)
    assert await store.count(Session, "expiry") == 0


async def test_a_thief_who_knew_the_old_password_is_a_stranger_after_the_change(identity):
    await identity.create_user("ann", PASSWORD)
    with at(AWAY):
        await identity.token("ann", PASSWORD)
    assert (await identity.named("ann")).known_networks == (AWAY,)
    await identity.set_password("ann", "another horse")
    assert (await identity.named("ann")).known_networks == ()
