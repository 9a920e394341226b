"""`village audit ...`: straight to the store and the archive, so that it also works while nothing serves."""

import argparse
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from cluster.audit.archive import FOLDER, Archive
from cluster.audit.filters import Filter
from cluster.audit.service import Audit
from cluster.audit.table import ACTIONS, EVENT_TYPES
from cluster.cli.direct import with_store
from cluster.clock import iso
from cluster.identity.model import SYSTEM
from cluster.settings import Settings

T = TypeVar("T")
Told = argparse.Namespace
console = Console(highlight=False)


def ask(settings: Settings, work: Callable[[Audit], Awaitable[T]]) -> T:
    """What `work` makes of the village's audit log. Raises `Refused` with the reason in words."""
    return with_store(settings, lambda store: work(Audit(store, Archive(settings.home / FOLDER))))


def verify(settings: Settings, told: Told) -> int:
    """Replay the whole chain, the archive too; exit status 1 and the place where it does not hold."""
    verdict = ask(settings, lambda audit: audit.verify(told.anchor))
    if verdict.fault is not None:
        print(f"BROKEN: {verdict.fault}; the {verdict.checked} entries before it hold")
        return 1
    print(f"{verdict.checked} entries hold, {verdict.archived} of them in the archive")
    print(f"anchor {verdict.checked}:{verdict.hash}")
    return 0


def listing(settings: Settings, told: Told) -> int:
    """Show entries, newest first."""
    wanted = Filter(
        client_id=told.client, event_type=told.type, action=told.did, ip_address=told.address,
        success=False if told.failures else None, since=told.since, until=told.until,
    )  # fmt: skip
    page = ask(settings, lambda audit: audit.page(SYSTEM, wanted, told.offset, told.limit))
    table = Table("number", "time", "action", "who", "from", "details", box=None)
    for entry in page.items:
        action = entry.action if entry.success else f"{entry.action} !"
        who = entry.client_id or entry.username or entry.principal_id or "the village"
        table.add_row(str(entry.number), iso(entry.created_at), action, who, entry.ip_address, entry.details)
    console.print(table)
    print(f"{len(page.items)} of {page.total}")
    return 0


def anchor(text: str) -> tuple[int, str]:
    """`NUMBER:HASH`, as `verify` prints it."""
    number, _, digest = text.partition(":")
    if not number.isdigit() or len(digest) != 64:
        raise argparse.ArgumentTypeError("as in 1234:<64 hexadecimal digits>")
    return int(number), digest.lower()


def moment(text: str) -> datetime:
    """ISO 8601; without a zone it is UTC."""
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def grammar(verbs: Any, verb: Callable[..., argparse.ArgumentParser]) -> None:
    """The grammar of these commands."""
    audits = verbs.add_parser("audit", help="The audit log.").add_subparsers(required=True, metavar="command")
    proving = verb("verify", verify, audits)
    proving.add_argument("--anchor", type=anchor, help="NUMBER:HASH of an earlier verify: that entry is still the same")
    showing = verb("list", listing, audits)
    showing.add_argument("--client", default="")
    showing.add_argument("--type", default="", choices=["", *EVENT_TYPES], metavar="TYPE", help=", ".join(EVENT_TYPES))
    showing.add_argument(
        "--action", dest="did", default="", choices=["", *ACTIONS], metavar="ACTION", help=", ".join(ACTIONS)
    )
    showing.add_argument("--address", default="")
    showing.add_argument("--failures", action="store_true")
    showing.add_argument("--since", type=moment)
    showing.add_argument("--until", type=moment)
    showing.add_argument("--limit", type=int, default=50)
    showing.add_argument("--offset", type=int, default=0)
