"""Audit use cases: who may read which entries, through Redis and the archive as if they were one, and the proof."""

from dataclasses import dataclass, replace

from pydantic import ValidationError

from cluster.audit.archive import Archive
from cluster.audit.filters import Filter
from cluster.audit.model import Entry, Head, Replay
from cluster.audit.witness import Witness
from cluster.clock import Clock, utc_now
from cluster.errors import Unavailable
from cluster.identity.model import Principal
from cluster.identity.records import ApiKey
from cluster.store import Page, Store
from cluster.store.intersect import intersect

MOVES = 20  # a page is read again when entries moved to the archive meanwhile; more often than this is not normal
BATCH = 500
MOST_KEYS = 1000  # of one maker, when it is asked which clients are theirs


@dataclass(frozen=True)
class Verdict:
    """What `verify` found: `fault` says what is wrong, None for a chain that holds from the first entry to the head."""

    checked: int
    archived: int
    hash: str
    fault: str | None


class Audit(Witness):
    """The audit log for callers; what requests tell it comes from `Witness`."""

    def __init__(self, store: Store, archive: Archive, clock: Clock = utc_now) -> None:
        super().__init__(store, clock)
        self.archive = archive

    async def _head(self) -> Head:
        return await self.store.find(Head, "audit") or Head()

    async def page(self, who: Principal, wanted: Filter, offset: int = 0, limit: int = 50) -> Page[Entry]:
        """Entries that `who` may read, newest first: an admin all, others those that they or a client of theirs are a
        party of. Raises `Unavailable`.
        """
        wanted = replace(wanted, parties=None if who.is_admin else await self._parties(who))
        for _ in range(MOVES):
            head = await self._head()
            total, ids = await intersect(self.store, wanted.groups(), wanted.low, wanted.high, offset, limit)
            entries = await self.store.many(Entry, ids)
            if (await self._head()).archived == head.archived:
                break
        else:
            raise Unavailable("old entries of the log are being moved just now", component="audit")
        if head.archived:
            try:
                archived = await self.archive.count(wanted, head.archived)
                if len(entries) < limit:
                    rest = limit - len(entries)
                    entries += await self.archive.page(wanted, head.archived, max(0, offset - total), rest)
            except (OSError, RuntimeError, ValueError) as error:  # what LanceDB raises
                raise Unavailable("the archive of the log cannot be read", component="audit archive") from error
            total += archived
        return Page(entries, total)

    async def _parties(self, who: Principal) -> tuple[str, ...]:
        if who.client_id:
            return (who.owner,)
        made = await self.store.page(ApiKey, "maker", who.owner, limit=MOST_KEYS)
        return (who.owner, *sorted({f"client_{key.client_id}" for key in made.items}))

    async def verify(self, anchor: tuple[int, str] | None = None) -> Verdict:
        """Replay the whole chain, the archive first. `anchor`: a number and the hash that its entry once had.

        A chain shows what was changed in it, not that all of it was written anew with another end: that takes a hash
        that was kept elsewhere. Raises `Unavailable`.
        """
        replay = Replay(anchor)
        while True:
            head = await self._head()
            batch, wrong = await self._from(head, replay.number)
            if wrong is None and batch and batch[0].number == replay.number:
                wrong = replay.take(batch)
                if wrong is None:
                    continue
            elif wrong is None:
                if (await self._head()).archived != head.archived:
                    continue  # they went to the archive meanwhile
                wrong = replay.end(head, bool(batch))
            return Verdict(replay.number - 1, head.archived, replay.previous, wrong)

    async def _from(self, head: Head, number: int) -> tuple[list[Entry], str | None]:
        """Some entries from that number on, or what is wrong with that one."""
        for limit in (BATCH, 1):
            try:
                return await self._read(head, number, limit), None
            except ValidationError:
                continue
        return [], f"entry {number} cannot be read"

    async def _read(self, head: Head, number: int, limit: int) -> list[Entry]:
        if number <= head.archived:
            return await self.archive.after(number - 1, min(limit, head.archived - number + 1))
        ids = await self.store.ids(Entry, "all", offset=number - head.archived - 1, limit=limit)
        return await self.store.many(Entry, ids)
