"""What somebody wants to see of the audit log, as sets of the store and as a predicate of the archive. Pure."""

import math
from dataclasses import dataclass
from datetime import datetime

from cluster.audit.model import Entry, outcome
from cluster.store.indexes import index_key


@dataclass(frozen=True)
class Filter:
    """Entries that fit everything that is given. `parties`: owners of whom one must be a party; None for all."""

    parties: tuple[str, ...] | None = None
    client_id: str = ""
    event_type: str = ""
    action: str = ""
    success: bool | None = None
    ip_address: str = ""
    since: datetime | None = None
    until: datetime | None = None

    @property
    def low(self) -> float:
        """The first millisecond that is wanted."""
        return -math.inf if self.since is None else math.ceil(self.since.timestamp() * 1000)

    @property
    def high(self) -> float:
        """The last one."""
        return math.inf if self.until is None else math.floor(self.until.timestamp() * 1000)

    def groups(self) -> list[list[str]]:
        """Keys of the sets: an entry is wanted that stands in one set of each group, between `low` and `high`."""
        parts = {
            "client": self.client_id, "type": self.event_type, "action": self.action, "address": self.ip_address,
            "outcome": "" if self.success is None else outcome(self.success),
        }  # fmt: skip
        groups = [[index_key(Entry.kind, name, (value,))] for name, value in parts.items() if value]
        if self.parties is not None:
            groups.append([index_key(Entry.kind, "party", (party,)) for party in self.parties])
        return groups or [[index_key(Entry.kind, "all")]]

    def predicate(self, through: int) -> str:
        """The same in LanceDB's SQL, among the entries up to the number `through`."""
        equal = {
            "client_id": self.client_id, "event_type": self.event_type, "action": self.action,
            "ip_address": self.ip_address,
        }  # fmt: skip
        parts = [f"number <= {through}", *(f"{name} = {quoted(value)}" for name, value in equal.items() if value)]
        if self.success is not None:
            parts.append("success" if self.success else "NOT success")
        if self.since is not None:
            parts.append(f"created_ms >= {self.low}")
        if self.until is not None:
            parts.append(f"created_ms <= {self.high}")
        if self.parties is not None:
            parts.append(_concerns(self.parties))
        return " AND ".join(parts)


def _concerns(parties: tuple[str, ...]) -> str:
    """`Entry.parties` in SQL."""
    owners = ", ".join(map(quoted, parties)) or "''"
    clients = ", ".join(quoted(party.removeprefix("client_")) for party in parties if party.startswith("client_"))
    told = f"actor IN ({owners}) OR owner IN ({owners})"
    return f"({told} OR client_id IN ({clients}))" if clients else f"({told})"


def quoted(text: str) -> str:
    """A string literal of LanceDB's SQL."""
    return "'" + text.replace("'", "''") + "'"
