"""Idempotency keys: the first answer again, for a day (draft-ietf-httpapi-idempotency-key-header).

What a killed process leaves behind tells the next attempt what to do: nothing was changed yet, and it may begin anew;
or the change was committed, together with the note that it was, and only its answer is lost.
"""

import asyncio
import hashlib
import secrets
from datetime import datetime, timedelta
from enum import StrEnum
from typing import ClassVar

from cluster.clock import Clock, utc_now
from cluster.errors import AnswerLost, IdempotencyMismatch, StillRunning
from cluster.store import Index, Record, Store, Write
from cluster.store.companion import Companion

KEPT = timedelta(hours=24)
LEASE = timedelta(seconds=15)  # a request whose process says nothing for so long is dead
BEAT_SECONDS = 5.0
SWEEP = 20  # expired keys that each new one clears away


class Stage(StrEnum):
    """How far a request with a key has come."""

    RUNNING = "running"
    CHANGED = "changed"
    ANSWERED = "answered"


class Attempt(Record):
    """The request that came first with a key, and its answer."""

    kind: ClassVar[str] = "idempotent"
    indexes: ClassVar[tuple[Index, ...]] = (Index("expiry", lambda a: a.expires_at.timestamp()),)

    idempotent_id: str
    fingerprint: str  # of method, path, query and body
    stage: Stage = Stage.RUNNING
    holder: str  # of all that run at once, the one that may write
    alive_at: datetime
    expires_at: datetime
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: str | None = None  # latin-1; None where the answer was too long to keep


class Verdict(StrEnum):
    """What is to be done with a request that carries a key."""

    RUN = "run"
    REPLAY = "replay"


def decide(found: Attempt | None, fingerprint: str, at: datetime) -> Verdict:
    """The rule. Raises `IdempotencyMismatch`, `StillRunning`, `AnswerLost`."""
    if found is None or at >= found.expires_at:
        return Verdict.RUN
    if found.fingerprint != fingerprint:
        raise IdempotencyMismatch("the Idempotency-Key came with another request before", field="Idempotency-Key")
    if found.stage is Stage.ANSWERED and found.body is not None:
        return Verdict.REPLAY
    if found.stage is Stage.ANSWERED:
        raise AnswerLost("the first request was answered, and its answer was too long to keep", status=found.status)
    if at - found.alive_at < LEASE:
        raise StillRunning("the first request with this Idempotency-Key is still running", retry_after_seconds=1)
    if found.stage is Stage.CHANGED:
        raise AnswerLost(
            "the first request was carried out, and its answer was lost in a crash: look before you repeat"
        )
    return Verdict.RUN


class Claim:
    """A request that runs under a key. Whatever it commits first takes the note that it did along."""

    def __init__(self, store: Store, clock: Clock, attempt: Attempt, version: str) -> None:
        self.store, self.clock = store, clock
        self.attempt, self.version = attempt, version
        self.companion = Companion()
        self._aim()
        self._beating = asyncio.ensure_future(self._beat())

    def _aim(self) -> None:
        if self.attempt.stage is Stage.RUNNING:
            changed = self.attempt.model_copy(update={"stage": Stage.CHANGED})
            self.companion.write = Write(self.attempt, changed, self.version)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            async with self.companion.lock:
                if not await self._write({"alive_at": self.clock()}):
                    return

    async def _write(self, update: dict[str, object] | None) -> bool:
        """Change the attempt, if it is still ours; with `companion.lock` held. None forgets it, unless it is a change:

        what was committed before the answer failed is not to be done twice.
        """
        found, version = await self.store.load(Attempt, self.attempt.idempotent_id)
        if found is None or found.holder != self.attempt.holder:
            return False
        if update is None and found.stage is Stage.CHANGED:
            update = {"alive_at": found.alive_at - LEASE}
        after = None if update is None else found.model_copy(update=update)
        if not await self.store.commit(Write(found, after, version)):
            return False
        if after is not None:
            self.attempt, self.version = after, str(int(version) + 1)
            if self.companion.write is not None:
                self._aim()
        return True

    async def _end(self, update: dict[str, object] | None) -> None:
        self._beating.cancel()
        await asyncio.gather(self._beating, return_exceptions=True)
        async with self.companion.lock:
            self.companion.write = None
            await self._write(update)

    async def answered(self, status: int, headers: tuple[tuple[str, str], ...], body: bytes | None) -> None:
        """Keep the answer for whoever asks again."""
        text = None if body is None else body.decode("latin-1")
        await self._end({"stage": Stage.ANSWERED, "status": status, "headers": headers, "body": text})

    async def forget(self) -> None:
        """Nothing was done: the next request with this key begins anew."""
        await self._end(None)


class Idempotency:
    """The keys of all principals."""

    def __init__(self, store: Store, clock: Clock = utc_now) -> None:
        self.store, self.clock = store, clock

    async def begin(self, principal_id: str, key: str, fingerprint: str) -> Claim | Attempt:
        """A claim for the first request, its answer for a later one. Raises as `decide` does."""
        name = hashlib.sha256(f"{principal_id}\n{key}".encode()).hexdigest()[:40]
        at = self.clock()
        found, version = await self.store.load(Attempt, name)
        if decide(found, fingerprint, at) is Verdict.REPLAY:
            assert found is not None
            return found
        attempt = Attempt(
            idempotent_id=name, fingerprint=fingerprint, holder=secrets.token_hex(8), alive_at=at, expires_at=at + KEPT
        )
        if not await self.store.commit(Write(found, attempt, version)):
            raise StillRunning("another request with this Idempotency-Key was faster", retry_after_seconds=1)
        await self._sweep(at)
        return Claim(self.store, self.clock, attempt, str(int(version) + 1))

    async def _sweep(self, at: datetime) -> None:
        for name in await self.store.ids(Attempt, "expiry", high=at.timestamp(), limit=SWEEP):
            found, version = await self.store.load(Attempt, name)
            if found is not None and found.expires_at <= at:
                await self.store.commit(Write(found, None, version))


def fingerprint(method: str, path: str, query: bytes, body: bytes) -> str:
    """Of what a request asks for."""
    return hashlib.sha256(b"\n".join((method.encode(), path.encode(), query, body))).hexdigest()
