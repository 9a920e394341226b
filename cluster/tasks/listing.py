"""Lists of tasks: every filter that the record has, newest or oldest first, by offset or by cursor.

The store has sets by owner, client and state, in the order of creation. What they answer they answer whatever their
size. Other filters are looked for along the narrowest of them, and after `SCAN` tasks a page says how far it came.
"""

import base64
import binascii
import json
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cluster.errors import Invalid
from cluster.identity.model import Principal
from cluster.store import Store
from cluster.store.gauge import up_to
from cluster.tasks.model import HELD, Task, TaskState

SCAN = 1000  # tasks read for one page
CHUNK = 100
Place = tuple[float, str]  # where a task stands in a list: its time, then its id
Shelf = tuple[str, ...]  # an index and the parts of one of its sets


@dataclass(frozen=True)
class Filter:
    """Which tasks; what is empty asks for nothing."""

    client_id: str = ""
    states: frozenset[TaskState] = frozenset()
    task_type: str = ""
    capability: str = ""
    agent_id: str = ""
    parent_id: str = ""
    priority: int | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None  # both included

    def matches(self, task: Task) -> bool:
        """What a set does not say, or has not heard of yet."""
        return (
            self.client_id in ("", task.client_id)
            and (not self.states or task.state in self.states)
            and self.task_type in ("", task.task_type)
            and self.capability in ("", task.capability_required)
            and self.agent_id in ("", task.agent_id)
            and self.parent_id in ("", task.parent_id)
            and self.priority in (None, task.priority)
        )

    @property
    def low(self) -> float:
        """The first time that is wanted, as the sets have it."""
        return self.created_after.timestamp() if self.created_after else -math.inf

    @property
    def high(self) -> float:
        """The last."""
        return self.created_before.timestamp() if self.created_before else math.inf


def shelves(who: Principal, wanted: Filter) -> tuple[list[Shelf], bool]:
    """The narrowest sets that hold what is wanted between them, and whether they hold nothing else."""
    others = (wanted.task_type, wanted.capability, wanted.agent_id, wanted.priority or "")
    exact = not any(others)
    if wanted.parent_id:
        return [("parent", wanted.parent_id)], False
    if wanted.agent_id and wanted.states and wanted.states <= HELD:
        return [("held", wanted.agent_id)], False
    base: list[Shelf] = [("list", "owner", who.owner)]
    if who.is_admin and wanted.client_id:
        # A client's tasks are its keys', and those that people submitted in its name.
        base = [("list", "owner", f"client_{wanted.client_id}"), ("list", "client", wanted.client_id)]
    elif who.is_admin:
        base = [("list", "all")]
    elif who.client_id and wanted.client_id not in ("", who.client_id):
        return [], True
    elif wanted.client_id and not who.client_id:
        exact = False  # a person's own tasks under one of several clients
    if wanted.states:
        base = [(*shelf, state) for shelf in base for state in sorted(wanted.states)]
    return base, exact


@dataclass
class Found:
    """A page. `total` is None where telling would mean to read them all; `scanned` were looked through for it."""

    items: list[Task] = field(default_factory=list)
    total: int | None = None
    cursor: str = ""  # where the next page begins; "" at the end
    scanned: int = 0


async def find(
    store: Store, who: Principal, wanted: Filter, *, newest_first: bool = True, cursor: str = "", offset: int = 0,
    limit: int = 50,
) -> Found:  # fmt: skip
    """A page of the tasks that `who` sees. Raises `Invalid` for a cursor that is none, and for an offset too far."""
    sets, exact = shelves(who, wanted)
    found = Found()
    if exact:
        found.total = sum([await _size(store, shelf, wanted) for shelf in sets])
    if exact and len(sets) == 1 and not cursor:  # Redis finds the place by itself, however far
        [(index, *parts)] = sets
        ids = await store.ids(
            Task, index, *parts, low=wanted.low, high=wanted.high, offset=offset, limit=limit + 1,
            newest_first=newest_first,
        )  # fmt: skip
        found.items = await store.many(Task, ids[:limit])
        found.cursor = written(place_of(found.items[-1])) if len(ids) > limit and found.items else ""
        return found
    walked = Walk(store, sets, wanted, newest_first, read(cursor) if cursor else None)
    chunk = min(CHUNK, offset + limit + 1) if exact else CHUNK
    skipped = matched = 0
    async for task in walked.tasks(chunk):
        if not wanted.matches(task) or not who.sees(task.owner):
            continue
        matched += 1
        if skipped < offset:
            skipped += 1
        elif len(found.items) < limit:
            found.items.append(task)
        else:
            found.cursor = written(place_of(found.items[-1]))
            break
    found.scanned = walked.read
    if not found.cursor and not walked.done:
        if skipped < offset:
            raise Invalid("this offset is too far here: follow next_cursor", field="offset", scanned=walked.read)
        found.cursor = written(walked.place) if walked.place else ""
    elif not found.cursor and not exact and not cursor:
        found.total = matched
    return found


async def _size(store: Store, shelf: Shelf, wanted: Filter) -> int:
    index, *parts = shelf
    if wanted.low == -math.inf and wanted.high == math.inf:
        return await store.count(Task, index, *parts)
    below, within = await up_to(store, Task, index, [math.nextafter(wanted.low, -math.inf), wanted.high], *parts)
    return max(0, within - below)


class Walk:
    """Along several sets at once, in the order of (time, id), from a place on."""

    def __init__(
        self, store: Store, sets: Sequence[Shelf], wanted: Filter, newest_first: bool, after: Place | None
    ) -> None:
        self.store, self.sets, self.newest_first = store, list(sets), newest_first
        self.low, self.high = wanted.low, wanted.high
        self.place = after
        self.read = 0
        self.done = not self.sets

    async def tasks(self, chunk: int) -> AsyncIterator[Task]:
        """Each once, as it stands now; until the end (`done`), or until `SCAN` were read."""
        while not self.done and self.read < SCAN:
            known: dict[str, Task] = {}
            frontiers: list[Place] = []
            for shelf in self.sets:
                tasks, ended = await self._ahead(shelf, chunk)
                known |= {task.task_id: task for task in tasks}
                if not ended and tasks:
                    frontiers.append(place_of(tasks[-1]))
            ordered = sorted(known.values(), key=place_of, reverse=self.newest_first)
            # Beyond the end of what was read of one set, it may have others in between.
            edge = (max if self.newest_first else min)(frontiers) if frontiers else None
            for task in ordered:
                if edge is not None and self._past(place_of(task), edge):
                    break
                self.place = place_of(task)
                yield task
            self.done = not frontiers

    async def _ahead(self, shelf: Shelf, chunk: int) -> tuple[list[Task], bool]:
        """The next of one set after the place, at most `chunk`, and whether it has no others."""
        (index, *parts), offset = shelf, 0
        low, high = self.low, self.high
        if self.place is not None:
            low, high = (low, min(high, self.place[0])) if self.newest_first else (max(low, self.place[0]), high)
        while True:
            ids = await self.store.ids(
                Task, index, *parts, low=low, high=high, offset=offset, limit=chunk,
                newest_first=self.newest_first,
            )  # fmt: skip
            tasks = await self.store.many(Task, ids)
            self.read += len(tasks)
            fresh = [task for task in tasks if self.place is None or self._past(place_of(task), self.place)]
            if fresh or len(ids) < chunk:
                return fresh, len(ids) < chunk
            offset += len(tasks)  # many of one instant, all of them behind us; what is gone stands in no set either

    def _past(self, place: Place, other: Place) -> bool:
        return place < other if self.newest_first else place > other


def place_of(task: Task) -> Place:
    """Where a task stands in every list."""
    return task.created_at.timestamp(), task.task_id


def written(place: Place) -> str:
    """A place as an opaque word."""
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def read(cursor: str) -> Place:
    """The place that it stands for. Raises `Invalid`."""
    try:
        time, task_id = json.loads(base64.urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)))
        place = float(time), str(task_id)
    except (ValueError, TypeError, binascii.Error, OverflowError) as error:
        raise Invalid("no cursor of ours", field="cursor") from error
    if not math.isfinite(place[0]):
        raise Invalid("no cursor of ours", field="cursor")
    return place
