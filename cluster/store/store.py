"""The only place that talks to Redis: get, change, list, events. One implementation, no fake."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import redis.asyncio as redis_asyncio
from pydantic_core import PydanticSerializationError
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cluster.errors import AlreadyExists, Conflict, Invalid, NotFound, Unavailable
from cluster.events.model import Event
from cluster.store import companion as companions
from cluster.store.indexes import EVENTS, Record, entries, index_key, record_key
from cluster.store.sets import Sets
from cluster.store.stream import Stream, entry
from cluster.store.wire import packed

R = TypeVar("R", bound=Record)
Step = Callable[[Any], Record]
EventOf = Callable[[Any, Any], Event | None]

COMMIT = (Path(__file__).parent / "commit.lua").read_text()
READ = (Path(__file__).parent / "read.lua").read_text()
PATIENCE_SECONDS = 3.0
AWAY_SECONDS = 0.8  # the same after a call that nobody answered: who makes several is told within 5 s all the same
RACES = 100  # a change that loses this often is contended beyond what optimistic commits are for


@dataclass(frozen=True)
class Write:
    """One record of a commit: what it was (None: it must not exist), what it shall be (None: gone), and the event."""

    before: Record | None
    after: Record | None
    version: str = "0"
    event: Event | tuple[Event, ...] | None = None  # several, in their order, where one step is several changes
    guard: "Guard | None" = None

    @property
    def events(self) -> tuple[Event, ...]:
        """As a tuple, whatever was given."""
        if self.event is None:
            return ()
        return (self.event,) if isinstance(self.event, Event) else self.event


@dataclass(frozen=True)
class Guard:
    """The write is refused where the sorted set has `most` members or more already."""

    index: str
    parts: tuple[str, ...]
    most: int


class Store(Stream, Sets):
    """Records, indexes and events over one Redis. Pickles as its URL.

    Raises `Unavailable` when Redis does not answer; nothing was acknowledged then.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._redis: Any = redis_asyncio.Redis.from_url(
            url,
            decode_responses=True,
            protocol=3,
            max_connections=512,
            # `_call` keeps the time instead: redis-py sends through asyncio.wait_for when it has a timeout, which on
            # Python 3.11 costs a task per command and may swallow a cancellation.
            socket_timeout=None,
            socket_connect_timeout=2,
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 3),
            # A commit carries a version and a nonce, so repeating one whose answer was lost does nothing twice.
            retry_on_error=[RedisConnectionError],
        )
        packed(self._redis.connection_pool)
        # As it came: redis-py would make a dictionary of each event, for readers that want few of them.
        self._redis.set_response_callback("XREAD", lambda answer, **_: answer)
        self._commit = self._redis.register_script(COMMIT)
        self._read = self._redis.register_script(READ)
        self._away = False

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.url,)

    async def close(self) -> None:
        """Give the connections back."""
        await self._redis.aclose()

    async def ping(self) -> float:
        """Seconds that one round trip takes."""
        begun = asyncio.get_running_loop().time()
        await self._call(self._redis.ping())
        return asyncio.get_running_loop().time() - begun

    async def _call(self, command: Any, wait_seconds: float = 0) -> Any:
        patience_seconds = AWAY_SECONDS if self._away else PATIENCE_SECONDS
        try:
            async with asyncio.timeout(wait_seconds + patience_seconds):
                answer = await command
                self._away = False
                return answer
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            self._away = True
            raise Unavailable("the store does not answer", component="redis") from error
        except RedisError as error:
            if str(error).startswith(("LOADING", "BUSY", "READONLY")):
                raise Unavailable("the store is not ready", component="redis") from error
            raise

    async def create(self, record: R, event: Event | None = None) -> R:
        """Write a new record. Raises `AlreadyExists`."""
        if not await self.commit(Write(None, record, event=event)):
            raise AlreadyExists(f"{record.kind} {record.id} exists", id=record.id)
        return record

    async def find(self, kind: type[R], record_id: str) -> R | None:
        """The record, or None."""
        body = await self._call(self._redis.hget(record_key(kind.kind, record_id), "body"))
        return None if body is None else kind.model_validate_json(body)

    async def get(self, kind: type[R], record_id: str) -> R:
        """The record. Raises `NotFound`."""
        record = await self.find(kind, record_id)
        if record is None:
            raise NotFound(f"no {kind.kind} {record_id}", id=record_id)
        return record

    async def many(self, kind: type[R], record_ids: Sequence[str]) -> list[R]:
        """The records of these ids in their order, those that exist, in one round trip."""
        return [record for record, _ in await self.load_many(kind, record_ids)]

    async def load_many(self, kind: type[R], record_ids: Sequence[str]) -> list[tuple[R, str]]:
        """The records of these ids with their versions, those that exist, in one round trip."""
        found = await self.read(*((kind, record_id) for record_id in record_ids)) if record_ids else []
        return [(record, version) for record, version in found if record is not None]

    async def load(self, kind: type[R], record_id: str) -> tuple[R | None, str]:
        """The record and its version, for a `Write`; (None, "0") where there is none."""
        version, body = await self._call(self._redis.hmget(record_key(kind.kind, record_id), "version", "body"))
        return (None, "0") if body is None else (kind.model_validate_json(body), version)

    async def read(self, *wanted: tuple[type[Record], str]) -> list[tuple[Any, str]]:
        """Records of any kinds with their versions, read in this order in one round trip; (None, "0") for none."""
        keys = [record_key(kind.kind, record_id) for kind, record_id in wanted]
        rows = await self._call(self._read(keys=keys)) if keys else []
        return [
            (None, "0") if body is None else (kind.model_validate_json(body), version)
            for (kind, _), version, body in zip(wanted, rows[::2], rows[1::2], strict=True)
        ]

    async def change(self, kind: type[R], record_id: str, step: Callable[[R], R], event: EventOf | None = None) -> R:
        """Read, apply the pure `step`, commit; again while others are faster. An equal record writes nothing.

        `event(before, after)` is committed with the change. `step` may run more than once. Raises `NotFound`.
        """
        for _ in range(RACES):
            before, version = await self.load(kind, record_id)
            if before is None:
                raise NotFound(f"no {kind.kind} {record_id}", id=record_id)
            after = step(before)
            if after == before:
                return before
            if await self.commit(Write(before, after, version, event(before, after) if event else None)):
                return after
        raise Conflict(f"{kind.kind} {record_id} is changed by too many at once", id=record_id)

    async def upsert(self, empty: R, step: Callable[[R], R], event: EventOf | None = None) -> R:
        """`change`, starting from `empty` where no such record exists yet."""
        try:
            return await self.change(type(empty), empty.id, step, event)
        except NotFound:
            after = step(empty)
            try:
                return await self.create(after, event(empty, after) if event else None)
            except AlreadyExists:
                return await self.change(type(empty), empty.id, step, event)

    async def delete(self, kind: type[R], record_id: str, event: Event | None = None) -> R:
        """Remove the record and its index entries; returns what it was. Raises `NotFound`."""
        for _ in range(RACES):
            before, version = await self.load(kind, record_id)
            if before is None:
                raise NotFound(f"no {kind.kind} {record_id}", id=record_id)
            if await self.commit(Write(before, None, version, event)):
                return before
        raise Conflict(f"{kind.kind} {record_id} is changed by too many at once", id=record_id)

    async def commit(self, *writes: Write) -> bool:
        """All of the writes with their events, in one round trip; False, and nothing done, if any lost its race."""
        companion = companions.current() if any(write.event for write in writes) else None
        if companion is None:
            return all(await self._write("all", writes))
        async with companion.lock:
            won = all(await self._write("all", (*writes, companion.write) if companion.write else writes))
            if won:
                companion.write = None
            return won

    async def commit_each(self, writes: Sequence[Write]) -> list[bool]:
        """Every write by itself, in one round trip: whether it won. Later guards see what earlier writes did."""
        return await self._write("each", writes) if writes else []

    async def _write(self, mode: str, writes: Sequence[Write]) -> list[bool]:
        keys: list[str] = [EVENTS]
        arguments: list[str | int] = [secrets.token_hex(8), mode]
        for write in writes:
            some = write.after or write.before
            assert some is not None
            old, new = entries(write.before), entries(write.after)
            scores = {key: "" for key in old if key not in new}
            scores |= {key: repr(float(score)) for key, score in new.items() if old.get(key) != score}
            keys += [record_key(some.kind, some.id), *scores]
            guard = write.guard
            if guard is not None:
                keys.append(index_key(some.kind, guard.index, guard.parts))
            try:
                body = write.after.model_dump_json(exclude_defaults=write.after.lean) if write.after else ""
                events = [part for event in write.events for part in (event.kind, entry(event))]
            except PydanticSerializationError as error:  # lone surrogates, which JSON can write and UTF-8 cannot
                raise Invalid("a text in it is not valid Unicode") from error
            most = "" if guard is None else guard.most
            arguments += [write.version, body, some.id, most, len(events) // 2, len(scores), *events, *scores.values()]
        return [digit == "1" for digit in await self._call(self._commit(keys=keys, args=arguments))]

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[str | int | float]) -> Any:
        """Run a component's own Lua script, which lies beside its owner and names its keys in its first comment."""
        return await self._call(self._redis.register_script(script)(keys=list(keys), args=list(arguments)))
