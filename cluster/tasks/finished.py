"""Tasks wherever they are: in Redis, or in the archive once they have ended and left.

A task is looked for in Redis first, so what is there costs nothing more. While some move they are in both, and count
where `Border` says: it is committed with the removal itself.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import ClassVar, TypeVar

from cluster.errors import Invalid, Unavailable
from cluster.identity.model import Principal
from cluster.store import Record, Store
from cluster.tasks.archive import TaskArchive, predicate
from cluster.tasks.listing import SCAN, Filter, Found, find, place_of, read, shelves, written
from cluster.tasks.model import Task, TaskState

log = logging.getLogger("village.tasks")
MOVES = 20  # sizes are read again when tasks moved meanwhile; after that they may be a few off
COUNTS = 256  # that are remembered
T = TypeVar("T")


class Border(Record):
    """Where the tasks in Redis end and those of the archive begin: rows up to `through` are in Redis no more."""

    kind: ClassVar[str] = "task_border"

    task_border_id: str = "tasks"
    through: int = 0
    oldest: float = 0.0  # times of creation between which all of them lie
    newest: float = 0.0

    def past(self, tasks: Sequence[Task]) -> "Border":
        """With these beyond it, whose rows come next."""
        times = [task.created_at.timestamp() for task in tasks]
        oldest = min(times) if not self.through else min(self.oldest, *times)
        update = {"through": self.through + len(tasks), "oldest": oldest, "newest": max(self.newest, *times)}
        return self.model_copy(update=update)


class Finished:
    """See the module. Without an archive it is Redis alone. Looking into the archive raises `Unavailable`."""

    def __init__(self, store: Store, archive: TaskArchive | None = None) -> None:
        self.store, self.archive = store, archive
        self._begun = False  # whether a task has ever left
        self._counts: dict[str, int] = {}

    async def find(self, task_id: str) -> Task | None:
        """The task, or None."""
        task = await self.store.find(Task, task_id)
        return task if task is not None else (await self._archived([task_id])).get(task_id)

    async def many(self, task_ids: Sequence[str]) -> list[Task]:
        """The tasks of these ids in their order, those that exist."""
        found = {task.task_id: task for task in await self.store.many(Task, task_ids)}
        if missing := [task_id for task_id in task_ids if task_id not in found]:
            found |= await self._archived(missing)
        return [found[task_id] for task_id in task_ids if task_id in found]

    async def ends(self, task_ids: Sequence[str]) -> dict[str, TaskState]:
        """How those ended that are in the archive, for a loop that has to go on where it cannot be read."""
        try:
            return {task_id: task.state for task_id, task in (await self._archived(task_ids)).items()}
        except Unavailable as error:
            log.warning("%s: what waits for a task that is there goes on waiting", error.message)
            return {}

    async def _archived(self, task_ids: Sequence[str]) -> dict[str, Task]:
        archive = await self._reading()
        return await archive.find(task_ids) if archive is not None and task_ids else {}

    async def _reading(self) -> TaskArchive | None:
        """The archive, once there is something in it."""
        if self.archive is None or self._begun:
            return self.archive
        self._begun = (await self.border()).through > 0
        return self.archive if self._begun else None

    async def border(self) -> Border:
        """As it is now."""
        return await self.store.find(Border, Border().id) or Border()

    # ---- lists

    async def page(
        self, who: Principal, wanted: Filter, *, newest_first: bool = True, cursor: str = "", offset: int = 0,
        limit: int = 50,
    ) -> Found:  # fmt: skip
        """`listing.find`, over both. Raises `Invalid`."""
        archive = await self._reading()
        if archive is None or predicate(who, wanted, 0, None, True) is None:
            found = await find(
                self.store, who, wanted, newest_first=newest_first, cursor=cursor, offset=offset, limit=limit
            )
            if archive is not None or (archive := await self._reading()) is None:  # or the first left meanwhile
                return found
        return await _Look(self, archive, who, wanted, newest_first).page(cursor, offset, limit)

    async def count(self, archive: TaskArchive, where: str) -> int:
        """`TaskArchive.count`, remembered: what a border has passed never changes."""
        if where not in self._counts:
            counted = await archive.count(where)
            if len(self._counts) >= COUNTS:
                del self._counts[next(iter(self._counts))]
            self._counts[where] = counted
        return self._counts[where]


@dataclass
class _Part:
    """A page, by where it lies: tasks that Redis alone has, and a part of the rest, with those in Redis among them."""

    offset: int
    limit: int
    alone: list[Task] = field(default_factory=list)
    among: list[Task] = field(default_factory=list)


class _Look:
    """One list over both, which are in one order."""

    def __init__(
        self, finished: Finished, archive: TaskArchive, who: Principal, wanted: Filter, newest_first: bool
    ) -> None:
        self.finished, self.archive, self.store = finished, archive, finished.store
        self.who, self.wanted, self.newest_first = who, wanted, newest_first
        self.exact = shelves(who, wanted)[1]  # whether the sizes of sets tell how many there are

    async def page(self, cursor: str, offset: int, limit: int) -> Found:
        """See `Finished.page`."""
        if not offset:
            return await self._after(cursor, limit)
        return await self._skipped(offset, limit) or await self._walked(offset, limit)

    async def _after(self, cursor: str, limit: int) -> Found:
        """The page after a place: the first of what each has there."""
        # In this order: what has left Redis since it was read is in the archive, and nothing is in neither.
        here = await self._redis(self.wanted, cursor, 0, limit)
        border = await self.finished.border()
        there = await self._rows(border, cursor, 0, limit + 1)
        tasks = self._merged(here.items, there)
        if here.cursor:  # beyond that place Redis has tasks that were not read
            edge = read(here.cursor)
            tasks = [t for t in tasks if place_of(t) == edge or (place_of(t) > edge) is self.newest_first]
        found = Found(tasks[:limit], scanned=here.scanned)
        if len(tasks) > limit or (len(tasks) == limit and here.cursor):
            found.cursor = written(place_of(tasks[limit - 1]))
        else:
            found.cursor = here.cursor
        if here.total is not None:
            total = here.total
            if self.exact:
                total, border = await self._still(lambda _: self._total(self.wanted))
            found.total = total + await self._count(border)
        return found

    async def _skipped(self, offset: int, limit: int) -> Found | None:
        """The page at an offset, where Redis can tell sizes: of what Redis alone has, or of where both have some."""
        if not self.exact:
            return None
        (part, total), border = await self._still(lambda border: self._plan(border, offset, limit))
        tasks = part.alone
        if part.limit:
            # As many rows more as there are tasks among them: no other can stand on this page.
            skip = max(0, part.offset - len(part.among))
            rows = await self._rows(border, "", skip, part.offset + part.limit - skip)
            both = self._merged(part.among, rows)[part.offset - skip :][: part.limit]
            tasks = tasks + both if self.newest_first else both + tasks
        more = bool(tasks) and offset + limit < total
        return Found(tasks, total, written(place_of(tasks[-1])) if more else "")

    async def _plan(self, border: Border, offset: int, limit: int) -> tuple[_Part, int]:
        archived, total = await self._count(border), await self._total(self.wanted)
        last = datetime.fromtimestamp(border.newest, UTC)
        older = replace(self.wanted, created_before=min(self.wanted.created_before or last, last))
        mixed = await self._total(older)  # in Redis, and older than the archive's newest
        if self.newest_first:
            here, size = offset, max(0, min(limit, total - mixed - offset))
            part = _Part(max(0, offset - total + mixed), limit - size)
        else:
            part = _Part(offset, max(0, min(limit, mixed + archived - offset)))
            here, size = max(mixed, offset - archived), limit - part.limit
        if part.limit and (among := min(mixed, part.offset + part.limit)):
            if among > SCAN:
                raise Invalid("this offset is too far here: follow next_cursor", field="offset")
            part.among = (await self._redis(older, "", 0, among)).items
        if size:
            part.alone = (await self._redis(self.wanted, "", here, size)).items
        return part, total + archived

    async def _walked(self, offset: int, limit: int) -> Found:
        """The page at an offset, from the beginning on."""
        found = await self._after("", offset + limit) if offset <= SCAN else Found(cursor="far")
        if found.cursor and len(found.items) <= offset:
            raise Invalid("this offset is too far here: follow next_cursor", field="offset", scanned=found.scanned)
        return replace(found, items=found.items[offset:])

    async def _still(self, look: Callable[[Border], Awaitable[T]]) -> tuple[T, Border]:
        """What was seen while no tasks moved, and the border."""
        border, left = await self.finished.border(), MOVES
        while True:
            before, seen = border, await look(border)
            border, left = await self.finished.border(), left - 1
            if border == before or not left:
                return seen, border

    async def _total(self, wanted: Filter) -> int:
        return (await self._redis(wanted, "", 0, 1)).total or 0

    async def _redis(self, wanted: Filter, cursor: str, offset: int, limit: int) -> Found:
        return await find(
            self.store, self.who, wanted, newest_first=self.newest_first, cursor=cursor, offset=offset, limit=limit
        )

    async def _rows(self, border: Border, cursor: str, offset: int, limit: int) -> list[Task]:
        place = read(cursor) if cursor else None
        low, high = max(border.oldest, self.wanted.low), min(border.newest, self.wanted.high)
        if place is not None:
            low, high = (low, min(high, place[0])) if self.newest_first else (max(low, place[0]), high)
        where = predicate(self.who, self.wanted, border.through, place, self.newest_first)
        if where is None or low > high:
            return []
        return await self.archive.page(where, self.newest_first, offset, limit, (low, high), border.through)

    async def _count(self, border: Border) -> int:
        where = predicate(self.who, self.wanted, border.through, None, self.newest_first)
        return 0 if where is None else await self.finished.count(self.archive, where)

    def _merged(self, some: Sequence[Task], others: Sequence[Task]) -> list[Task]:
        both = {task.task_id: task for task in (*others, *some)}
        return sorted(both.values(), key=place_of, reverse=self.newest_first)
