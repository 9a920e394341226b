"""The generation: a record whose version counts every revocation, so that a memory of good credentials can be exact.

Whatever makes a credential no longer good, or worth less, commits a write of this record with the change itself. A
process that remembers what it checked compares one version per request, and forgets everything when it moved.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from cluster.errors import Conflict
from cluster.events.model import Event
from cluster.store import Record, Store, Write
from cluster.store.indexes import record_key
from cluster.store.store import RACES

ID = "identity"
GENERATION_KEY = record_key("generation", ID)  # its field `version` is what a request reads beside its counters

Wanted = tuple[type[Record], str]
Decided = tuple[Record | None, Event | None]  # what a record shall be (None: gone), and what to tell of it
Plan = Callable[..., Sequence[Decided] | None]


class Generation(Record):
    """Nothing but its version."""

    kind: ClassVar[str] = "generation"

    generation_id: str = ID


async def decide(store: Store, wanted: Sequence[Wanted], plan: Plan, revokes: bool = True) -> tuple[list[Any], str]:
    """Change several records at once, as the pure `plan` says when given what they are (None: not there).

    `plan(*records)` returns one `Decided` for each, or None to leave all as it is; it runs again while others are
    faster, and may raise. Returns what the records are now, and the generation's version if this moved it, else "".
    """
    for _ in range(RACES):
        (generation, counted), *found = await store.read((Generation, ID), *wanted)
        decided = plan(*(record for record, _ in found))
        if decided is None:
            return [record for record, _ in found], ""
        writes = [
            Write(before, after, version, event)
            for (before, version), (after, event) in zip(found, decided, strict=True)
            if after != before or event is not None
        ]
        if revokes:  # first, because a commit's nonce stays with its first record and the others may be deleted
            writes.insert(0, Write(generation, Generation(), counted))
        if not writes or await store.commit(*writes):
            return [after for after, _ in decided], str(int(counted) + 1) if revokes else ""
    raise Conflict("changed by too many at once")
