"""Moving tasks that have ended from Redis to the archive, so that their number is bounded by the disk.

First the rows, then commits that take the tasks out of Redis and say that the rows count: killed in between, the rows
do not count, and whoever moves next drops them and begins again.
"""

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import timedelta

from cluster.clock import Clock, utc_now
from cluster.errors import Unavailable
from cluster.events.cursor import Cursor
from cluster.events.model import order
from cluster.settings import Settings
from cluster.store import Store, Write
from cluster.store.store import Guard
from cluster.tasks.archive import FOLDER, TaskArchive
from cluster.tasks.finished import Border
from cluster.tasks.model import FINAL, Task
from cluster.tasks.verification import replica_id
from cluster.workflows.chains.model import PREFIX as CHAIN
from cluster.workflows.chains.model import Chain, ChainState

log = logging.getLogger("village.tasks")
LOOK = 10_000  # tasks that are found to be due at once: of so many Redis tells within 5 ms
BATCH, BATCH_BYTES = 1000, 32 << 20  # of one write to the archive
AT_ONCE = 100  # of one commit: Redis does nothing else meanwhile
PATIENCE_SECONDS = 3600.0  # fewer than a batch wait so long for more: each write adds a file
READING_SECONDS = 30.0  # for the readers of the events to come past what is due
AGAIN_SECONDS = 0.5
FORGET_SECONDS = 60.0  # then those that were still needed are looked at again
ENDED = [("all", state) for state in sorted(FINAL)]
READERS = frozenset({"audit", "chains", "ledger", "verification", "webhooks"})  # of the events of tasks, by cursor


class Foreign(Exception):
    """The archive is not that of this Redis: it has tasks that Redis does not know, or lacks some that have left it."""


@dataclass(frozen=True)
class Needs:
    """What is known around tasks that are to leave."""

    dependents: Mapping[str, int]  # of each task, those that wait for it
    running: AbstractSet[str] = frozenset()  # chains
    unended: AbstractSet[str] = frozenset()  # tasks

    def free(self, task: Task) -> bool:
        """Whether nothing that goes on may come back to the task."""
        return (
            task.state in FINAL
            and not self.dependents[task.task_id]
            and task.parent_id not in self.running
            and task.parent_id not in self.unended
            and self.unended.isdisjoint(replicas(task))
        )


def replicas(task: Task) -> list[str]:
    """Ids of a verified task's replicas."""
    asked = task.verification.asked if task.verification is not None else 0
    return [replica_id(task.task_id, number) for number in range(1, asked + 1)]


class Mover:
    """See the module. `keep`: how long ended tasks stay in Redis; `keep_tasks`: how many of them at the most."""

    EVERY_SECONDS = 10.0

    def __init__(
        self, store: Store, archive: TaskArchive, keep: timedelta, keep_tasks: int, clock: Clock = utc_now
    ) -> None:
        self.store, self.archive, self.clock = store, archive, clock
        self.keep, self.keep_tasks = keep, keep_tasks
        self._needed: set[str] = set()  # due, but something still needs them
        self._forgot_at = self._moved_at = -math.inf
        self._whole = False  # the archive has no rows that do not count

    @classmethod
    def of(cls, store: Store, settings: Settings) -> "Mover":
        """As the settings say."""
        archive = TaskArchive(settings.home / FOLDER)
        return cls(store, archive, timedelta(days=settings.tasks_keep_days), settings.tasks_keep)

    async def step(self) -> int:
        """Move what is due, if that is worth it yet; how many tasks went. Raises `Foreign`."""
        moved, now = 0, asyncio.get_running_loop().time
        if now() - self._forgot_at >= FORGET_SECONDS:
            self._forgot_at = now()
            self._needed.clear()
        while due := await self.due():
            if len(due) < BATCH and now() - self._moved_at < PATIENCE_SECONDS:
                break
            with self.archive.writing() as mine:
                if not mine or not await self._read_by_all(await self.store.last_event_id()):
                    break
                self._whole = False  # another process may have written here
                moved += await self._move(due)
            self._moved_at = now()
        return moved

    async def due(self) -> dict[str, bool]:
        """The oldest tasks that have ended, as far as they are too many (True) or may be too old."""
        over = sum(await self.store.counts(Task, "list", ENDED)) - self.keep_tasks
        long_ago = (self.clock() - self.keep).timestamp()
        oldest = [row[0][1] for row in await self.store.scored(Task, "list", ENDED, 1) if row]
        some = LOOK if oldest and min(oldest) <= long_ago else min(LOOK, max(over, 0))
        if not some:
            return {}
        most = len(self._needed) + some
        found = await self.store.scored(Task, "list", ENDED, most)
        rows = sorted((at, task_id) for row in found for task_id, at in row)[:most]
        return {
            task_id: rank < over
            for rank, (at, task_id) in enumerate(rows)
            if (rank < over or at <= long_ago) and task_id not in self._needed
        }

    async def _read_by_all(self, event_id: str) -> bool:
        """Whether every reader of the stream has come past the event; waits for that."""
        until = asyncio.get_running_loop().time() + READING_SECONDS
        while True:
            cursors = (await self.store.page(Cursor, "all", limit=1000)).items
            behind = READERS - {cursor.cursor_id for cursor in cursors}
            behind |= {cursor.cursor_id for cursor in cursors if order(cursor.event_id) < order(event_id)}
            if not behind:
                return True
            if asyncio.get_running_loop().time() > until:
                log.warning("ended tasks stay in Redis: %s is behind", ", ".join(sorted(behind)))
                return False
            await asyncio.sleep(AGAIN_SECONDS)

    async def _move(self, due: Mapping[str, bool]) -> int:
        names, moved = list(due), 0
        batch: list[tuple[Task, str, str]] = []
        for start in range(0, len(names), AT_ONCE):
            found = await self.store.load_many(Task, names[start : start + AT_ONCE])
            free = await self._free(found, due)
            self._needed.update(names[start : start + AT_ONCE])
            self._needed.difference_update(task.task_id for task, _ in free)
            batch += [(task, version, task.model_dump_json()) for task, version in free]
            last = start + AT_ONCE >= len(names)
            if batch and (last or len(batch) >= BATCH or sum(len(body) for *_, body in batch) > BATCH_BYTES):
                moved += await self._leave(batch)
                batch = []
        return moved

    async def _free(self, found: Sequence[tuple[Task, str]], due: Mapping[str, bool]) -> list[tuple[Task, str]]:
        """Those that nothing needs, and that have ended long ago if they are not too many."""
        long_ago = self.clock() - self.keep
        tasks = [task for task, _ in found]
        counts = await self.store.counts(Task, "dependents", [(task.task_id,) for task in tasks])
        parents = {task.parent_id for task in tasks}
        chains = sorted(parent for parent in parents if parent.startswith(CHAIN))
        others = sorted({parent for parent in parents if parent.startswith("task_")}.union(*map(replicas, tasks)))
        needs = Needs(
            dict(zip((task.task_id for task in tasks), counts, strict=True)),
            {chain.chain_id for chain in await self.store.many(Chain, chains) if chain.state is ChainState.RUNNING},
            {other.task_id for other in await self.store.many(Task, others) if other.state not in FINAL},
        )
        return [
            (task, version)
            for task, version in found
            if needs.free(task) and (due[task.task_id] or (task.completed_at or task.updated_at) <= long_ago)
        ]

    async def _leave(self, batch: Sequence[tuple[Task, str, str]]) -> int:
        """Write the rows, then take the tasks out of Redis; how many went."""
        found, version = await self.store.load(Border, Border().id)
        border = found or Border()
        if not self._whole:
            await self._mend(border)
        await self.archive.add([(task, body) for task, _, body in batch], border.through + 1)
        moved = 0
        for start in range(0, len(batch), AT_ONCE):
            some = batch[start : start + AT_ONCE]
            after = border.past([task for task, *_ in some])
            # The border is first: its nonce tells a repeated commit that it was done.
            writes = [Write(found, after, version), *(_removal(task, its) for task, its, _ in some)]
            if not await self.store.commit(*writes):
                self._whole = False  # somebody depends on one of them since; the next step leaves it out
                return moved
            found, border, version, moved = after, after, str(int(version) + 1), moved + len(some)
        await self.archive.upkeep()
        return moved

    async def _mend(self, border: Border) -> None:
        """Drop rows that do not count: whoever wrote them was killed before their tasks left Redis."""
        if border.through and not await self.archive.holds(border.through):
            raise Foreign(f"{self.archive.folder} lacks tasks that have left Redis")
        while names := await self.archive.beyond(border.through, AT_ONCE):
            here = {task.task_id for task in await self.store.many(Task, names)}
            if alone := sorted(set(names) - here):
                raise Foreign(f"{self.archive.folder} has {alone[0]}, which Redis does not know of")
            await self.archive.drop(names, border.through)
        self._whole = True


def _removal(task: Task, version: str) -> Write:
    """Refused where a task has come to wait for it."""
    return Write(task, None, version, guard=Guard("dependents", (task.task_id,), 1))


async def move_tasks(store: Store, settings: Settings) -> None:
    """The loop that the village runs."""
    mover = Mover.of(store, settings)
    while True:
        try:
            await mover.step()
        except Unavailable:
            log.warning("the store does not answer: tasks that have ended stay where they are")
        except Exception:
            # Nothing is lost without the move: Redis grows; the next step tries again.
            log.exception("tasks that have ended could not be moved to the archive")
        await asyncio.sleep(Mover.EVERY_SECONDS)
