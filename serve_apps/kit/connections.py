"""What stays open: WebSockets and streams of events. How many, on whose credential, and how each of them ends.

A connection outlives the request that opened it, so nobody checks its credential again unless this does: one look per
process every few seconds finds what was revoked, and the credentials' own expiry.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

import structlog

from cluster.errors import LimitExceeded, Unauthenticated, Unavailable
from cluster.identity.model import Principal
from cluster.identity.service import Identity
from cluster.limits.policy import Sockets

log = structlog.get_logger()

LOOK_AGAIN_SECONDS = 5.0  # how long a connection may outlive its token, key or user
BEAT_EVERY = 3  # looks between two signs of life on a stream
CLOSE_SECONDS = 3.0  # how long a replica that ends waits for its connections to
BREATH = 256  # connections looked at before anybody else of this process may go on

GOING_AWAY, UNSUPPORTED, POLICY_VIOLATION, TOO_BIG, INTERNAL_ERROR, TRY_AGAIN_LATER = 1001, 1003, 1008, 1009, 1011, 1013


@dataclass(frozen=True)
class End:
    """Why a connection ends, as a WebSocket's close code; `dead`: its peer takes nothing more, not even that."""

    code: int
    reason: str
    dead: bool = False


@dataclass(eq=False)
class Connection:
    """One open connection, for as long as it lasts."""

    key: str  # under which its caller's connections are counted
    credential: str = ""
    principal: Principal | None = None
    beat: Callable[[], object] | None = None  # a sign of life, for streams whose protocol has none
    ended: End | None = None
    _life: asyncio.Timeout | None = None

    def end(self, code: int, reason: str, dead: bool = False) -> None:
        """Have `life` end. The first reason stays."""
        if self.ended is None:
            self.ended = End(code, reason, dead)
            if self._life is not None:
                self._life.reschedule(0)

    @asynccontextmanager
    async def life(self) -> AsyncIterator[None]:
        """What runs inside is cut off when the connection ends."""
        try:
            async with asyncio.timeout(0 if self.ended else None) as self._life:
                yield
        except TimeoutError:
            if self.ended is None:
                raise
        finally:
            self._life = None


def caller(principal: Principal | None, address: str) -> str:
    """Under what a caller's connections are counted."""
    return principal.principal_id if principal else f"address_{address or 'local'}"


class Connections:
    """All open connections of this process."""

    def __init__(self, identity: Identity, limits: Sockets) -> None:
        self.identity, self.limits = identity, limits
        self._open: set[Connection] = set()
        self._held: Counter[str] = Counter()
        self._watch: asyncio.Task[None] | None = None
        self._closing = False
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def enter(self, principal: Principal | None, credential: str, address: str) -> Iterator[Connection]:
        """A connection of this caller. Raises `LimitExceeded`, `Unavailable`."""
        if self._closing or len(self._open) >= self.limits.per_process:
            raise Unavailable("this replica takes no more connections", open=len(self._open), retry_after_seconds=2)
        connection = Connection(caller(principal, address), credential, principal)
        self._count(connection.key)
        self._open.add(connection)
        self._empty.clear()
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look_again())
        try:
            yield connection
        finally:
            self._open.discard(connection)
            self._uncount(connection.key)
            if not self._open:
                self._empty.set()

    def renew(self, connection: Connection, principal: Principal, credential: str) -> None:
        """The connection goes on with another credential. Raises `LimitExceeded`."""
        key = caller(principal, "")
        if key != connection.key:
            self._count(key)
            self._uncount(connection.key)
        connection.key, connection.principal, connection.credential = key, principal, credential

    def _count(self, key: str) -> None:
        if self._held[key] >= self.limits.per_caller:
            raise LimitExceeded(
                f"more than {self.limits.per_caller} connections at one time", limit=self.limits.per_caller,
                window="connections", retry_after_seconds=60,
            )  # fmt: skip
        self._held[key] += 1

    def _uncount(self, key: str) -> None:
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]

    async def _look_again(self) -> None:
        """Ends with the last connection; the next one starts it anew."""
        looks = 0
        while self._open:
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
            looks += 1
            if looks % BEAT_EVERY == 0:
                for connection in self._open:
                    if connection.beat is not None:
                        connection.beat()
            try:
                await self.check()
            except Unavailable:
                continue  # nobody can tell what was revoked, so nobody is put out
            except Exception:
                log.exception("the look at open connections failed")

    async def check(self) -> None:
        """End every connection whose credential is no longer good, or gives other rights. Raises `Unavailable`."""
        await self.identity.look()
        for n, connection in enumerate(tuple(self._open), 1):
            if connection.principal is not None:
                try:
                    now = await self.identity.authenticate(connection.credential)
                except Unauthenticated:
                    connection.end(POLICY_VIOLATION, "the credential is no longer good")
                    continue
                if (now.owner, now.scopes) != (connection.principal.owner, connection.principal.scopes):
                    connection.end(POLICY_VIOLATION, "the credential has other rights now: come back")
            if n % BREATH == 0:
                await asyncio.sleep(0)

    async def close(self) -> None:
        """Take no more connections, and end those that there are."""
        self._closing = True
        for connection in tuple(self._open):
            connection.end(GOING_AWAY, "this replica ends: come back with last_event_id")
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._empty.wait()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
