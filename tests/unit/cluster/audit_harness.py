"""What the tests of the audit log share."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from cluster.audit.archive import Archive
from cluster.audit.filters import Filter
from cluster.audit.keeper import AuditKeeper
from cluster.audit.model import Entry
from cluster.audit.mover import Mover
from cluster.audit.service import Audit
from cluster.clock import utc_now
from cluster.events import Event
from cluster.identity.model import SYSTEM, Principal
from cluster.origin import Origin
from cluster.store import Store

ADMIN = SYSTEM
ALL = Filter()


def person(name: str) -> Principal:
    return Principal(principal_id=f"user_{name}", owner=f"user_{name}", username=name, scopes=frozenset({"audit:read"}))


def program(client: str) -> Principal:
    return Principal(
        principal_id=f"key_{client}", owner=f"client_{client}", username=client, client_id=client,
        scopes=frozenset({"audit:read"}),
    )  # fmt: skip


def happened(kind: str = "model.deleted", number: int = 0, who: Principal | None = None, **rest: Any) -> Event:
    """An event of the stream, made by `who` from an address of their own."""
    origin = None
    if who is not None:
        origin = Origin(
            principal_id=who.principal_id, client_id=who.client_id, username=who.username,
            address=f"192.0.2.{len(who.username)}", user_agent="Test/1.0", method="POST", endpoint="/somewhere",
            request_id=f"req_{number}",
        )  # fmt: skip
    fields: dict[str, Any] = {"subject": f"thing_{number}", "owner": who.owner if who else "", "at": utc_now()}
    return Event(kind=kind, **fields | {"origin": origin} | rest)


async def kept(store: Store) -> AuditKeeper:
    """Everything in the stream so far is in the log."""
    keeper = AuditKeeper(store)
    await keeper.open()
    while await keeper.step(wait_seconds=0):
        pass
    return keeper


def mover(store: Store, folder: Path) -> Mover:
    return Mover(store, Archive(folder), timedelta(days=30), 1_000_000)


async def log_of(audit: Audit, who: Principal = ADMIN, wanted: Filter = ALL, limit: int = 7) -> list[Entry]:
    """The whole log, oldest first, read page by page."""
    entries: list[Entry] = []
    while True:
        page = await audit.page(who, wanted, offset=len(entries), limit=limit)
        entries += page.items
        if len(entries) >= page.total:
            assert len(entries) == page.total
            return entries[::-1]
        assert page.items
