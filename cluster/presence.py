"""Who is alive: each long-running part says so in a record, and whoever asks compares the time."""

import os
from datetime import datetime
from typing import Any, ClassVar

from cluster.store import Record, Store

BEAT_SECONDS = 2.0
LATE_SECONDS = 5.0  # two beats that did not come
STALE_SECONDS = 10.0


class Presence(Record):
    """The last sign of life of a part of the village."""

    kind: ClassVar[str] = "presence"

    presence_id: str  # "router", "ledger", ...
    pid: int
    host: str
    at: datetime
    data: dict[str, Any] = {}

    def alive(self, now: datetime) -> bool:
        """Whether the last beat is recent."""
        return (now - self.at).total_seconds() < STALE_SECONDS


async def beat(store: Store, name: str, at: datetime, data: dict[str, Any] | None = None) -> None:
    """Say that the part `name` lives in this process. Raises `Unavailable`."""
    now = Presence(presence_id=name, pid=os.getpid(), host=os.uname().nodename, at=at, data=data or {})
    await store.upsert(now, lambda _: now)
