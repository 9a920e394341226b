"""The keeper of the audit log: each event of the stream that belongs in the log becomes one entry of the chain."""

import asyncio
import logging

from cluster.audit.model import Head, append
from cluster.audit.mover import Mover
from cluster.audit.table import AUDITED, draft
from cluster.clock import Clock, utc_now
from cluster.errors import Conflict, Unavailable
from cluster.events import Event
from cluster.events.cursor import Cursor, forget_what_all_have_read, keep_place
from cluster.events.keeping import keep
from cluster.events.model import START, order
from cluster.presence import BEAT_SECONDS, beat
from cluster.settings import Settings
from cluster.store import Store, Write
from cluster.store.store import RACES

log = logging.getLogger("village.audit")


class AuditKeeper:
    """Entries and the chain's head change in one commit, so a keeper that is killed anywhere, or has a twin, neither
    leaves out nor doubles an event: whoever comes next goes on after the head's last one.
    """

    NAME = "audit"

    def __init__(self, store: Store, clock: Clock = utc_now) -> None:
        self.store, self.clock = store, clock
        self.cursor = START
        self.written = 0

    async def open(self) -> None:
        """Find the place where the last keeper stopped."""
        (cursor, _), (head, _) = await self.store.read((Cursor, self.NAME), (Head, "audit"))
        places = [START, cursor.event_id if cursor else START, head.through if head and head.through else START]
        self.cursor = max(places, key=order)

    async def step(self, wait_seconds: float = BEAT_SECONDS) -> bool:
        """Read and write one batch; whether there was one."""
        batch, after = await self.store.batch(self.cursor, AUDITED, wait_seconds=wait_seconds)
        if batch:
            self.written += await self._write(batch)
        read, self.cursor = after != self.cursor, after
        return read

    async def _write(self, batch: list[Event]) -> int:
        drafts = [made for event in batch if (made := draft(event)) is not None]
        if not drafts:
            return 0
        for _ in range(RACES):
            found, version = await self.store.load(Head, "audit")
            head, entries = append(found or Head(), drafts)
            if not entries:
                return 0
            if await self.store.commit(Write(found, head, version), *(Write(None, entry) for entry in entries)):
                return len(entries)
        raise Conflict("the audit log is written by too many at once")

    async def beat(self) -> None:
        """Say that the log is kept, and how far."""
        await keep_place(self.store, self.NAME, self.cursor)
        await forget_what_all_have_read(self.store)
        await beat(self.store, self.NAME, self.clock(), {"cursor": self.cursor, "written": self.written})


async def keep_audit(store: Store, settings: Settings) -> None:
    """The loop, for ever: write what comes, and move what is old to the archive beside it."""
    await asyncio.gather(keep(AuditKeeper(store)), _move(Mover.of(store, settings)))


async def _move(mover: Mover) -> None:
    while True:
        try:
            await mover.step()
        except Unavailable:
            log.warning("the store does not answer: old entries stay where they are")
        except Exception:
            # The log is whole without the move, only larger in memory; the next step tries again.
            log.exception("old entries could not be moved to the archive")
        await asyncio.sleep(Mover.EVERY_SECONDS)
