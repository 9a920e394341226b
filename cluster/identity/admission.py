"""Admission: from what a caller presents to a principal, by this process's memory in the common case.

The memory is exact, not merely fresh. Every revocation moves the generation (`generation.py`); a request reads its
version beside its limit counters and says here what it `heard`; when that is news, everything remembered is forgotten
and the caller is checked again. So a good credential costs no round trip of its own, and a revocation acts at the next
request on every replica.
"""

import asyncio
import secrets
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cluster.clock import Clock, utc_now
from cluster.errors import AlreadyExists, Conflict, NotFound, Unauthenticated, Unavailable
from cluster.identity import keys, signing, tokens
from cluster.identity.generation import ID, Generation, Plan, Wanted, decide
from cluster.identity.model import Principal
from cluster.identity.passwords import Passwords
from cluster.identity.records import ApiKey, RevokedToken, Session, User
from cluster.identity.signing import SigningKey, SigningKeys
from cluster.store import Record, Store

REMEMBERED = 10_000  # credentials that a process keeps in mind
USED_EVERY = timedelta(minutes=1)  # how fine a key's `last_used_at` is
SWEPT = 20  # expired records that go when one is added
LONGEST = tokens.LONGEST


@dataclass(slots=True)
class Remembered:
    """A good credential: whose, until when (seconds since the epoch), and for a key when its use was last noted."""

    principal: Principal
    expires: float
    noted: datetime | None = None


class Admission:
    """Who may come in. The base of the other parts of identity, which end credentials through `_revoking`."""

    def __init__(self, store: Store, clock: Clock = utc_now, passwords: Passwords | None = None) -> None:
        self.store, self.clock = store, clock
        self._passwords = passwords or Passwords()
        self._known = ""  # the generation's version that `_memory` belongs to
        self._memory: dict[str, Remembered] = {}
        self.lookups = {"hit": 0, "miss": 0}  # for metrics
        self._signing: SigningKeys | None = None
        self._writing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Read the signing secrets, or make the village's first one."""
        await self._read_signing()

    async def authenticate(self, presented: str) -> Principal:
        """Who an API key or an access token stands for. Raises `Unauthenticated`.

        From memory where this process has checked the same credential since the last revocation that it heard of;
        otherwise in one round trip.
        """
        at = self.clock()
        seen = self._memory.get(presented)
        self.lookups["hit" if seen else "miss"] += 1
        if seen is None:
            if not 0 < len(presented) <= LONGEST:
                raise Unauthenticated("the credential is invalid")
            check = self._check_key if presented.startswith(keys.PREFIX) else self._check_token
            seen = await check(presented, at)
        if at.timestamp() >= seen.expires:
            self._memory.pop(presented, None)
            raise Unauthenticated("the credential has expired")
        if seen.noted is None or at - seen.noted >= USED_EVERY:
            seen.noted = at
            if seen.principal.client_id:
                self._later(self._note_use(seen.principal.principal_id, at))
        return seen.principal

    def heard(self, version: str) -> bool:
        """Take note of the generation's version. True if it was news: whoever was admitted must be checked again."""
        version = version or "0"
        if version == self._known:
            return False
        self._known = version
        self._memory.clear()
        return True

    async def look(self) -> bool:
        """`heard`, for whoever has no limit counters to read it beside. Raises `Unavailable`."""
        _, version = await self.store.load(Generation, ID)
        return self.heard(version)

    def _remember(self, presented: str, seen: Remembered, version: str) -> Remembered:
        # The version was read before the records, in one pipeline: what is remembered is at least as new as it.
        self.heard(version)
        if len(self._memory) >= REMEMBERED:
            del self._memory[next(iter(self._memory))]
        self._memory[presented] = seen
        return seen

    async def _check_key(self, key: str, at: datetime) -> Remembered:
        digest = keys.digest(key)
        (_, version), (record, _) = await self.store.read((Generation, ID), (ApiKey, keys.key_id(digest)))
        if record is None or not keys.same(record, digest) or not record.active(at):
            raise Unauthenticated("the API key is invalid, expired or revoked")
        expires = record.expires_at.timestamp() if record.expires_at else float("inf")
        return self._remember(key, Remembered(record.principal(), expires, record.last_used_at), version)

    async def _check_token(self, token: str, at: datetime) -> Remembered:
        signed_by = await self._key_named(tokens.named_key(token), at)
        claims = tokens.read(token, "access", signed_by, at)
        (_, version), (signers, _), (user, _), (session, _), (revoked, _) = await self.store.read(
            (Generation, ID), (SigningKeys, signing.ID), (User, claims["sub"]), (Session, claims["sid"]),
            (RevokedToken, claims["jti"]),
        )  # fmt: skip
        self._signing = signers
        signed_by = signers.named(signed_by.kid, at) if signed_by and signers else None
        if signed_by is None or revoked or not lives(session, user, at):
            raise Unauthenticated("the token is no longer good")
        if session.stolen and claims["jti"] != session.first:
            raise Unauthenticated("the token is no longer good")
        expires = min(claims["exp"], signed_by.until.timestamp() if signed_by.until else float("inf"))
        return self._remember(token, Remembered(user.principal(session.session_id), expires, at), version)

    async def _key_named(self, kid: str, at: datetime) -> SigningKey | None:
        known = self._signing.named(kid, at) if self._signing else None
        if known is None and kid:  # perhaps one that is new
            known = (await self._read_signing()).named(kid, at)
        return known

    async def _read_signing(self) -> SigningKeys:
        found = await self.store.find(SigningKeys, signing.ID)
        if found is None:
            try:
                found = await self.store.create(SigningKeys(keys=(new_signing_key(self.clock()),)))
            except AlreadyExists:  # another process was faster
                found = await self.store.get(SigningKeys, signing.ID)
        self._signing = found
        return found

    async def _revoking(self, wanted: Sequence[Wanted], plan: Plan) -> list[Any]:
        """`generation.decide`, for a change that ends or lessens credentials."""
        records, version = await decide(self.store, wanted, plan)
        if version:
            self.heard(version)
        return records

    async def _deciding(self, wanted: Sequence[Wanted], plan: Plan) -> list[Any]:
        """`generation.decide`, for a change that leaves every credential as it is."""
        return (await decide(self.store, wanted, plan, revokes=False))[0]

    async def _forget(self, kind: type[Record], record_id: str) -> None:
        with suppress(NotFound):  # another process was faster
            await self.store.delete(kind, record_id)

    async def _sweep(self, kind: type[Record], at: datetime) -> None:
        """Drop some expired records; called when one is added, so that they do not pile up."""
        for record_id in await self.store.ids(kind, "expiry", high=at.timestamp(), limit=SWEPT):
            await self._forget(kind, record_id)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """In the background: the request does not wait for it, and losing it to a crash costs nothing that counts."""
        task = asyncio.create_task(work)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _note_use(self, key_id: str, at: datetime) -> None:
        def use(key: ApiKey) -> ApiKey:
            fresh = key.last_used_at is not None and at - key.last_used_at < USED_EVERY
            return key if fresh else key.model_copy(update={"last_used_at": at})

        try:
            key = await self.store.change(ApiKey, key_id, use)
        except (Unavailable, Conflict):
            return
        except NotFound:
            self._memory.clear()
            return
        if not key.active(at):  # a Redis that lost its last second may count a generation twice
            self._memory.clear()

    async def settled(self) -> None:
        """Return once nothing is left to be written in the background."""
        await asyncio.gather(*self._writing)


def lives(session: Session | None, user: User | None, at: datetime) -> bool:
    """Whether the tokens of a session open anything."""
    return (
        session is not None and user is not None and user.may_enter
        and session.user_id == user.user_id and session.era == user.era and at < session.expires_at
    )  # fmt: skip


def new_signing_key(at: datetime) -> SigningKey:
    """256 random bits under a random name."""
    return SigningKey(kid=secrets.token_hex(8), secret=secrets.token_hex(32), since=at)
