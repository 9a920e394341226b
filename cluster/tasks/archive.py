"""The archive of tasks: those that have ended and have left Redis, as rows of a LanceDB table.

A row has a column for each thing that lists ask for, and the record itself as JSON. Rows are numbered as they leave,
and count from the moment that `Border` says so; see `finished.py`, which reads Redis and this as one. LanceDB is
imported when it is first needed: it takes a second and 100 MB, and most processes never look so far back.
"""

import asyncio
import fcntl
import hashlib
import os
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from cluster.audit.filters import quoted
from cluster.errors import Unavailable
from cluster.identity.model import Principal
from cluster.tasks.listing import Filter, Place
from cluster.tasks.model import FINAL, Task

FOLDER = "tasks"  # in the village's home
TABLE = "tasks"
WRITES_PER_UPKEEP = 64  # each write adds a file and a version
KEEP_VERSIONS = timedelta(minutes=2)  # a query that began on an older version can still end
CACHE_BYTES = 64 << 20  # of each of LanceDB's two caches, which may have gigabytes otherwise
TOGETHER = 500  # ids of one query
AT_ONCE = 4  # queries of one process: who asks for what never was must not keep all cores busy
AHEAD = 50  # a page is first looked for among as many times its rows
WIDER = 16
BROKEN = (OSError, RuntimeError, ValueError)  # what LanceDB raises
T = TypeVar("T")


class TaskArchive:
    """One folder, which one process at a time writes and any number read. Reading raises `Unavailable`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opening = asyncio.Lock()
        self._room = asyncio.Semaphore(AT_ONCE)
        self._opened: Any = None
        self._writes = 0

    async def _table(self, make: bool = False) -> Any:
        async with self._opening:
            if self._opened is None:
                lancedb, schema = await asyncio.to_thread(_import)
                # Without the interval a reader would see for ever what was there when it opened the table.
                connection = await lancedb.connect_async(
                    str(self.folder), read_consistency_interval=timedelta(0),
                    session=lancedb.Session(CACHE_BYTES, CACHE_BYTES),
                )  # fmt: skip
                # A reader makes no table: one that is gone is not an archive without tasks.
                if make:
                    self._opened = await connection.create_table(TABLE, schema=schema, exist_ok=True)
                else:
                    self._opened = await connection.open_table(TABLE)
            return self._opened

    # ---- writing

    @contextmanager
    def writing(self) -> Iterator[bool]:
        """Whether this process may write until the block ends; the kernel lets go for one that is killed."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(self.folder / "writer.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    async def add(self, tasks: Sequence[tuple[Task, str]], number: int) -> None:
        """Rows of these and their JSON, the first with this number; on the disk then. Called with `writing`."""
        table = await self._table(make=True)
        await table.add(await asyncio.to_thread(_rows, tasks, number, await table.schema()))
        self._writes += 1
        await asyncio.to_thread(os.sync)  # LanceDB leaves it to the kernel, and Redis is about to forget them

    async def holds(self, number: int) -> bool:
        """Whether it has the row of that number."""
        return await (await self._table(make=True)).count_rows(f"number = {number}") > 0

    async def beyond(self, number: int, limit: int) -> list[str]:
        """Ids of some rows with higher numbers."""
        query = (await self._table(make=True)).query().where(f"number > {number}").select(["task_id"]).limit(limit)
        return [row["task_id"] for row in await query.to_list()]

    async def drop(self, task_ids: Sequence[str], beyond: int) -> None:
        """Remove rows with higher numbers than `beyond`. Called with `writing`."""
        await (await self._table()).delete(f"number > {beyond} AND key IN ({_keys(task_ids)})")

    async def upkeep(self) -> None:
        """Join small files and forget old versions, when it is time for that. Called with `writing`."""
        if self._writes >= WRITES_PER_UPKEEP:
            self._writes = 0
            await (await self._table()).optimize(cleanup_older_than=KEEP_VERSIONS)

    # ---- reading

    async def find(self, task_ids: Sequence[str]) -> dict[str, Task]:
        """Those of these tasks that are here, by id."""
        return await self._read(self._find(task_ids))

    async def _find(self, task_ids: Sequence[str]) -> dict[str, Task]:
        table, found = await self._table(), {}
        for start in range(0, len(task_ids), TOGETHER):
            some = task_ids[start : start + TOGETHER]
            rows = await table.query().where(f"key IN ({_keys(some)})").select(["task_id", "record"]).to_list()
            found |= {r["task_id"]: Task.model_validate_json(r["record"]) for r in rows if r["task_id"] in some}
        return found

    async def count(self, where: str) -> int:
        """How many rows there are of a `predicate`."""
        return await self._read(self._count(where))

    async def _count(self, where: str) -> int:
        return await (await self._table()).count_rows(where)

    async def page(
        self, where: str, newest_first: bool, offset: int, limit: int, edges: tuple[float, float], rows: int
    ) -> list[Task]:
        """Tasks of a `predicate` in the order of (time, id). `edges`: times between which all of them lie; `rows`: how
        many the archive has, by which a page is looked for in a part of that time first.
        """
        return await self._read(self._page(where, newest_first, offset, limit, edges, rows))

    async def _page(
        self, where: str, newest_first: bool, offset: int, limit: int, edges: tuple[float, float], rows: int
    ) -> list[Task]:
        table, (low, high) = await self._table(), edges
        span = (high - low) * AHEAD * (offset + limit) / max(rows, 1)
        while True:
            a, b = (max(low, high - span), high) if newest_first else (low, min(high, low + span))
            inside = f"{where} AND created >= {a!r} AND created <= {b!r}"
            # Numbers first: to put whole rows in order, LanceDB would read all of each.
            query = _ordered(table.query().where(inside).select(["number", "created", "task_id"]), newest_first)
            found = await query.offset(offset).limit(limit).to_list()
            if len(found) == limit or (a, b) == (low, high):
                break
            span = max(span, 1e-6) * WIDER
        if not found:
            return []
        listed = ", ".join(str(row["number"]) for row in found)
        records = await table.query().where(f"number IN ({listed})").select(["number", "record"]).to_list()
        by_number = {row["number"]: row["record"] for row in records}
        return [Task.model_validate_json(by_number[row["number"]]) for row in found]

    async def _read(self, reading: Awaitable[T]) -> T:
        async with self._room:
            try:
                return await reading
            except BROKEN as error:
                raise Unavailable("the archive of tasks cannot be read", component="task archive") from error


def predicate(who: Principal, wanted: Filter, through: int, after: Place | None, newest_first: bool) -> str | None:
    """What `who` wants of the rows up to the number `through`, in LanceDB's SQL; None for nothing.

    `after`: only those that come after this place.
    """
    states = sorted(wanted.states & FINAL)
    if wanted.states and not states:
        return None
    parts = [f"number <= {through}"]
    equal = {
        "owner": "" if who.is_admin else who.owner, "client_id": wanted.client_id, "task_type": wanted.task_type,
        "capability_required": wanted.capability, "agent_id": wanted.agent_id, "parent_id": wanted.parent_id,
    }  # fmt: skip
    parts += [f"{name} = {quoted(value)}" for name, value in equal.items() if value]
    if states:
        parts.append(f"state IN ({', '.join(map(quoted, states))})")
    if wanted.priority is not None:
        parts.append(f"priority = {wanted.priority}")
    if wanted.created_after:
        parts.append(f"created >= {wanted.low!r}")
    if wanted.created_before:
        parts.append(f"created <= {wanted.high!r}")
    if after is not None:
        (at, task_id), sign = after, "<" if newest_first else ">"
        name = quoted(task_id.encode(errors="replace").decode())  # a cursor may say anything
        parts.append(f"(created {sign} {at!r} OR (created = {at!r} AND task_id {sign} {name}))")
    return " AND ".join(parts)


def key(task_id: str) -> int:
    """A number for an id: LanceDB looks through numbers eight times as fast as through texts."""
    return int.from_bytes(hashlib.blake2b(task_id.encode(errors="replace"), digest_size=8).digest()) >> 1


def _keys(task_ids: Sequence[str]) -> str:
    return ", ".join(str(key(task_id)) for task_id in task_ids)


def _import() -> tuple[Any, Any]:
    import lancedb
    import pyarrow as pa

    whole = ("number", "key", "priority")
    texts = ("task_id", "owner", "client_id", "parent_id", "task_type", "capability_required", "agent_id", "state")
    fields = [pa.field(name, pa.int64()) for name in whole] + [pa.field(name, pa.string()) for name in texts]
    return lancedb, pa.schema([*fields, pa.field("created", pa.float64()), pa.field("record", pa.large_string())])


def _rows(tasks: Sequence[tuple[Task, str]], number: int, schema: Any) -> Any:
    import pyarrow as pa

    given = {
        "number": list(range(number, number + len(tasks))), "key": [key(task.task_id) for task, _ in tasks],
        "created": [task.created_at.timestamp() for task, _ in tasks], "record": [body for _, body in tasks],
    }  # fmt: skip
    others = {name: [getattr(task, name) for task, _ in tasks] for name in schema.names if name not in given}
    return pa.table(given | others, schema=schema)


def _ordered(query: Any, newest_first: bool) -> Any:
    from lancedb.query import ColumnOrdering

    return query.order_by(
        [ColumnOrdering(column_name=name, ascending=not newest_first) for name in ("created", "task_id")]
    )
