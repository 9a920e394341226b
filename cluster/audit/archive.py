"""The archive: entries of the audit log that have left Redis, as rows of a LanceDB table. Rows are only ever added.

LanceDB is imported when it is first needed: it takes a second and 100 MB, and most gateways never look so far back.
"""

import asyncio
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from cluster.audit.filters import Filter
from cluster.audit.model import Entry

FOLDER = "audit"  # in the village's home
TABLE = "entries"
WRITES_PER_UPKEEP = 32  # each write adds a file and a version
KEEP_VERSIONS = timedelta(minutes=10)  # a query that began on an older version can still end


class Foreign(Exception):
    """The archive holds another entry of the same number: it belongs to another village, or one was forged."""


class Archive:
    """One folder, which one process at a time writes and any number read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opening = asyncio.Lock()
        self._opened: Any = None
        self._writes = 0

    async def _table(self, make: bool = False) -> Any:
        async with self._opening:
            if self._opened is None:
                lancedb, schema = await asyncio.to_thread(_import)
                # Without the interval a reader would see for ever what was there when it opened the table.
                connection = await lancedb.connect_async(str(self.folder), read_consistency_interval=timedelta(0))
                # A reader makes no table: one that is gone is not an archive without entries.
                if make:
                    self._opened = await connection.create_table(TABLE, schema=schema, exist_ok=True)
                else:
                    self._opened = await connection.open_table(TABLE)
            return self._opened

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

    async def add(self, entries: Sequence[Entry]) -> None:
        """Add those that are not there yet, on the disk when this returns; called with `writing`. Raises `Foreign`."""
        table = await self._table(make=True)
        rows = await table.query().where(f"number >= {entries[0].number}").select(["number", "hash"]).to_list()
        known = {row["number"]: row["hash"] for row in rows}
        for entry in entries:
            if known.get(entry.number, entry.hash) != entry.hash:
                raise Foreign(f"the archive in {self.folder} has another entry {entry.number}")
        new = [entry.model_dump() for entry in entries if entry.number not in known]
        if new:
            await table.add(await asyncio.to_thread(_rows, new, await table.schema()))
            self._writes += 1
        await asyncio.to_thread(os.sync)  # LanceDB leaves it to the kernel, and Redis is about to forget them

    async def upkeep(self) -> None:
        """Join small files and forget old versions, when it is time for that; called with `writing`."""
        if self._writes >= WRITES_PER_UPKEEP:
            self._writes = 0
            await (await self._table()).optimize(cleanup_older_than=KEEP_VERSIONS)

    async def count(self, wanted: Filter, through: int) -> int:
        """How many of the entries up to the number `through` are wanted."""
        return await (await self._table()).count_rows(wanted.predicate(through))

    async def page(self, wanted: Filter, through: int, offset: int, limit: int) -> list[Entry]:
        """Wanted entries, newest first."""
        table = await self._table()
        # Numbers first: to put whole rows in order, LanceDB would read all of each.
        found = table.query().where(wanted.predicate(through)).select(["number"])
        numbers = await _ordered(found, ascending=False).offset(offset).limit(limit).to_list()
        if not numbers:
            return []
        listed = ", ".join(str(row["number"]) for row in numbers)
        rows = await _ordered(table.query().where(f"number IN ({listed})"), ascending=False).to_list()
        return [Entry.model_validate(row) for row in rows]

    async def after(self, number: int, limit: int) -> list[Entry]:
        """Entries in the order of their numbers, from the one after `number` on, whoever they belong to."""
        rows = (await self._table()).query().where(f"number > {number} AND number <= {number + limit}")
        return [Entry.model_validate(row) for row in await _ordered(rows, ascending=True).to_list()]


def _import() -> tuple[Any, Any]:
    import lancedb
    import pyarrow as pa

    kinds = {str: pa.string(), int: pa.int64(), bool: pa.bool_()}
    fields = [pa.field(name, kinds[field.annotation]) for name, field in Entry.model_fields.items()]  # type: ignore[index]
    return lancedb, pa.schema(fields)


def _rows(entries: list[dict[str, Any]], schema: Any) -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist(entries, schema=schema)


def _ordered(query: Any, ascending: bool) -> Any:
    from lancedb.query import ColumnOrdering

    return query.order_by([ColumnOrdering(column_name="number", ascending=ascending)])
