"""Moving old entries of the audit log from Redis to the archive, so that the log outgrows the disk, not the memory."""

import asyncio
import math
from datetime import timedelta

from cluster.audit.archive import FOLDER, Archive
from cluster.audit.model import Entry, Head
from cluster.clock import Clock, utc_now
from cluster.errors import Conflict
from cluster.settings import Settings
from cluster.store import Store, Write
from cluster.store.store import RACES

BATCH = 500
PATIENCE_SECONDS = 3600.0  # a smaller batch waits so long for more: each move adds a file


class Damaged(Exception):
    """The oldest entries in Redis do not follow the archive's last one: they stay, and `village audit verify` tells."""


class Mover:
    """First the rows, then one commit that takes the entries out of Redis and says that the archive counts so far.

    Killed in between, the rows are there and do not count, and the next move finds them there.
    """

    EVERY_SECONDS = 60.0

    def __init__(
        self, store: Store, archive: Archive, keep: timedelta, keep_entries: int, clock: Clock = utc_now
    ) -> None:
        self.store, self.archive, self.clock = store, archive, clock
        self.keep, self.keep_entries = keep, keep_entries
        self._moved_at = -math.inf

    @classmethod
    def of(cls, store: Store, settings: Settings) -> "Mover":
        """As the settings say."""
        archive = Archive(settings.home / FOLDER)
        return cls(store, archive, timedelta(days=settings.audit_keep_days), settings.audit_keep_entries)

    async def step(self) -> int:
        """Move what is due, if that is worth it yet; how many entries went."""
        moved = 0
        while due := await self.due():
            now = asyncio.get_running_loop().time()
            if due < BATCH and now - self._moved_at < PATIENCE_SECONDS:
                break
            if not (some := await self.move(due)):
                break
            moved += some
            self._moved_at = now
        return moved

    async def due(self) -> int:
        """How many of the oldest entries are too old, or too many for the memory; at most a batch."""
        long_ago = (self.clock() - self.keep).timestamp() * 1000
        old = len(await self.store.ids(Entry, "all", high=long_ago, limit=BATCH))
        return min(BATCH, max(old, await self.store.count(Entry, "all") - self.keep_entries))

    async def move(self, count: int) -> int:
        """Move the `count` oldest entries; how many went: none while another process moves. Raises `Damaged`."""
        with self.archive.writing() as mine:
            if not mine:
                return 0
            head = await self.store.find(Head, "audit") or Head()
            found = await self.store.load_many(Entry, await self.store.ids(Entry, "all", limit=count))
            if [entry.number for entry, _ in found] != [head.archived + 1 + n for n in range(len(found))]:
                raise Damaged(f"entry {head.archived + 1} or one after it is missing")
            if found:
                await self.archive.add([entry for entry, _ in found])
                await self._let_go(found)
                await self.archive.upkeep()
            return len(found)

    async def _let_go(self, found: list[tuple[Entry, str]]) -> None:
        for _ in range(RACES):
            head, version = await self.store.load(Head, "audit")
            if head is None:
                raise Damaged("the head of the chain is gone")
            after = head.model_copy(update={"archived": found[-1][0].number})
            gone = (Write(entry, None, its) for entry, its in found)
            if await self.store.commit(Write(head, after, version), *gone):
                return
        raise Conflict("the audit log is written by too many at once")
