"""Entries of the audit log and the chain that they form. Pure.

Each entry's hash covers its content and the hash before it, as the trust ledger's lines do: whoever edits, drops or
reorders one breaks every later link. An entry's id and time are those of the event that it comes from, which the store
numbers, so that one event is one entry however often it is read, and the order of ids, times and numbers is the same.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar

import rfc8785

from cluster.events.model import order
from cluster.store import Index, Record

GENESIS = "0" * 64


class Entry(Record):
    """One line of the log. `actor` is whose doing it was and `owner` whose thing it was done to, both as owners."""

    kind: ClassVar[str] = "log"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index("all", lambda e: e.created_ms),
        Index("party", lambda e: e.created_ms, lambda e: [(party,) for party in e.parties]),
        Index("client", lambda e: e.created_ms, lambda e: [(e.client_id,)] if e.client_id else []),
        Index("type", lambda e: e.created_ms, lambda e: [(e.event_type,)]),
        Index("action", lambda e: e.created_ms, lambda e: [(e.action,)]),
        Index("outcome", lambda e: e.created_ms, lambda e: [(outcome(e.success),)]),
        Index("address", lambda e: e.created_ms, lambda e: [(e.ip_address,)] if e.ip_address else []),
    )

    log_id: str
    number: int
    created_ms: int
    event_type: str
    action: str
    success: bool
    client_id: str
    principal_id: str
    username: str
    actor: str
    owner: str
    subject: str
    ip_address: str
    user_agent: str
    request_id: str
    details: str  # canonical JSON: a text that the hash covers as it stands
    previous: str
    hash: str = ""

    @property
    def created_at(self) -> datetime:
        """When the store took the event."""
        return datetime.fromtimestamp(self.created_ms / 1000, UTC)

    @property
    def parties(self) -> frozenset[str]:
        """Owners who may read it."""
        client = f"client_{self.client_id}" if self.client_id else ""
        return frozenset({self.actor, self.owner, client} - {""})


class Head(Record):
    """Where the chain ends. It is committed with the entries that it names, so both are true or neither is."""

    kind: ClassVar[str] = "audit_head"

    audit_head_id: str = "audit"
    length: int = 0
    hash: str = GENESIS
    through: str = ""  # the last event that was looked at: an event counts once
    archived: int = 0  # entries up to this number are in the archive, and nowhere else


@dataclass(frozen=True)
class Draft:
    """What an entry says, before it has a place in the chain."""

    event_id: str
    event_type: str
    action: str
    success: bool
    details: str
    client_id: str = ""
    principal_id: str = ""
    username: str = ""
    actor: str = ""
    owner: str = ""
    subject: str = ""
    ip_address: str = ""
    user_agent: str = ""
    request_id: str = ""


def outcome(success: bool) -> str:
    """The name of the set of entries that went well, or did not."""
    return "success" if success else "failure"


def log_id(event_id: str) -> str:
    """The id of an event's entry; sorts as the stream does."""
    milliseconds, number = order(event_id)
    return f"log_{milliseconds:012x}{number:08x}"


def digest(entry: Entry) -> str:
    """The link: SHA-256 of the entry's canonical JSON (RFC 8785) without its own hash."""
    return hashlib.sha256(rfc8785.dumps(entry.model_dump(mode="json", exclude={"hash"}))).hexdigest()


def append(head: Head, drafts: Iterable[Draft]) -> tuple[Head, list[Entry]]:
    """The chain with the drafts at its end. A draft of an event that is in it already adds nothing."""
    entries: list[Entry] = []
    for draft in drafts:
        if head.through and order(draft.event_id) <= order(head.through):
            continue
        fields = dict(vars(draft))
        event_id = fields.pop("event_id")
        entry = Entry(
            log_id=log_id(event_id), number=head.length + 1, created_ms=order(event_id)[0], previous=head.hash, **fields
        )
        entry = entry.model_copy(update={"hash": digest(entry)})
        head = head.model_copy(update={"length": entry.number, "hash": entry.hash, "through": event_id})
        entries.append(entry)
    return head, entries


@dataclass
class Replay:
    """The chain, read again from its first entry on. `anchor`: a number, and the hash that its entry once had."""

    anchor: tuple[int, str] | None = None
    number: int = 1  # of the entry that comes next
    previous: str = GENESIS

    def take(self, entries: Iterable[Entry]) -> str | None:
        """What is wrong with the next entries; None when each of them follows."""
        for entry in entries:
            if entry.number != self.number:
                return f"entry {self.number} is missing"
            if digest(entry) != entry.hash:
                return f"entry {entry.number} ({entry.log_id}) was changed after it was written"
            if entry.previous != self.previous:
                return f"entry {entry.number} ({entry.log_id}) does not follow the one before it"
            if self.anchor is not None and self.anchor[0] == entry.number and self.anchor[1] != entry.hash:
                return f"entry {entry.number} ({entry.log_id}) is not the one that once had the hash {self.anchor[1]}"
            self.number, self.previous = self.number + 1, entry.hash
        return None

    def end(self, head: Head, more: bool) -> str | None:
        """What is wrong where the chain ends; `more`: there are entries, and the next is not among them."""
        if more or self.number <= head.length:
            return f"entry {self.number} is missing"
        if self.number != head.length + 1 or self.previous != head.hash:
            return "the chain does not end where its head says"
        if self.anchor is not None and self.anchor[0] >= self.number:
            return f"entry {self.anchor[0]}, which was there once, is missing"
        return None


def canonical(details: dict[str, Any]) -> str:
    """RFC 8785, as text; the values are those that `plain` lets through."""
    return rfc8785.dumps(details).decode()


def told(entry: Entry) -> dict[str, Any]:
    """The entry's details, readable again."""
    return json.loads(entry.details)
