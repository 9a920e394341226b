"""Several records changed at once, as a pure plan says that is given what they are."""

from collections.abc import Callable, Sequence
from typing import Any

from cluster.errors import Conflict
from cluster.events import Event
from cluster.store import Record, Store, Write

RACES = 100

Wanted = tuple[type[Record], str]
Decided = tuple[Record | None, Event | None]  # what a record shall be (None: gone), and what to tell of it
Plan = Callable[..., Sequence[Decided] | None]


async def decide(store: Store, wanted: Sequence[Wanted], plan: Plan) -> list[Any] | None:
    """What the records are now; None where `plan` left all as it is by saying None.

    `plan(*records)` returns one `Decided` for each of them; it runs again while others are faster, and may raise.
    """
    for _ in range(RACES):
        found = await store.read(*wanted)
        decided = plan(*(record for record, _ in found))
        if decided is None:
            return None
        writes = [
            Write(before, after, version, event)
            for (before, version), (after, event) in zip(found, decided, strict=True)
            if after != before or event is not None
        ]
        if not writes or await store.commit(*writes):
            return [after for after, _ in decided]
    raise Conflict("changed by too many at once", id=wanted[0][1])
