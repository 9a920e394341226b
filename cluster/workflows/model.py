"""What the records of chains, schedules and templates have in common: whose they are, and the lists they stand in."""

from collections.abc import Iterable
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict

from cluster.identity.model import Principal


class Author(BaseModel):
    """Who made a record, for the tasks that a loop submits in that name later. Without scopes: a loop is no admin."""

    model_config = ConfigDict(frozen=True)

    principal_id: str
    owner: str
    username: str
    by_key: bool = False  # with an API key, so in the name of its client alone

    @classmethod
    def of(cls, who: Principal) -> "Author":
        """The author that a request's principal is."""
        return cls(principal_id=who.principal_id, owner=who.owner, username=who.username, by_key=bool(who.client_id))

    def acting_for(self, client_id: str) -> Principal:
        """Who submits the record's tasks. That the author may name this client was checked when the record was made."""
        return Principal(
            principal_id=self.principal_id, owner=self.owner, username=self.username,
            client_id=client_id if self.by_key else "",
        )  # fmt: skip


def shelves(owner: str, client_id: str, state: str = "") -> Iterable[tuple[str, ...]]:
    """Every set of a record's `list` index: all or the owner's, of any or one client, in any or one state."""
    for whose in (("all",), ("owner", quote(owner, ""))):
        for client in ((), ("client", quote(client_id, ""))):
            yield (*whose, *client)
            if state:
                yield (*whose, *client, state)


def shelf(who: Principal, client_id: str = "", state: str = "") -> tuple[str, ...]:
    """The one of those sets that answers a question of `who`."""
    whose = ("all",) if who.is_admin else ("owner", quote(who.owner, ""))
    return (*whose, *(("client", quote(client_id, "")) if client_id else ()), *((state,) if state else ()))
