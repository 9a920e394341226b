"""Records, their declared indexes, and every key of the store. No key is built anywhere else.

    {village}:<kind>:<id>                       hash   version, body (JSON of the record)
    {village}:<kind>.<index>[:<part>...]        zset   record ids by score
    {village}:events                            stream one entry per change: its kind, and its JSON
    {village}:signals                           stream what processes tell each other and nobody keeps
    {village}:limit:...                         string counters of the limits library
    {village}:count.<name>[:<part>...]          hash   counters that expire
    {village}:batch.<name>:<writer>             string the last batch that a writer added to them
    {village}:scratch:<n>                       zset   within one script

The hash tag keeps all of it in one slot of a Redis Cluster, so one script may touch any of it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

PREFIX = "{village}"
EVENTS = f"{PREFIX}:events"
SIGNALS = f"{PREFIX}:signals"
LIMITS = f"{PREFIX}:limit"
SCRATCH = (f"{PREFIX}:scratch:1", f"{PREFIX}:scratch:2")


def _everything(_: Any) -> Iterable[tuple[str, ...]]:
    return ((),)


@dataclass(frozen=True)
class Index:
    """A sorted set over the records of a kind: `parts` says in which sets a record stands, `score` where.

    `parts(record)` yields one tuple per set, so `lambda t: [(t.client_id, t.state)]` gives one set for each pair and
    `lambda t: []` leaves the record out.
    """

    name: str
    score: Callable[[Any], float]
    parts: Callable[[Any], Iterable[tuple[str, ...]]] = _everything


class Record(BaseModel):
    """An immutable record: a change is a new one, which the store commits if nobody was faster."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: ClassVar[str]
    lean: ClassVar[bool] = False  # stored without what is as by default: such defaults never change
    indexes: ClassVar[tuple[Index, ...]] = ()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """See pydantic, whose own takes four times as long; a task is copied at each of its steps."""
        if deep:
            return super().model_copy(update=update, deep=True)
        made = type(self).__new__(type(self))
        change = update or {}
        object.__setattr__(made, "__dict__", {**self.__dict__, **change})
        object.__setattr__(made, "__pydantic_fields_set__", self.__pydantic_fields_set__ | change.keys())
        object.__setattr__(made, "__pydantic_extra__", None)
        object.__setattr__(made, "__pydantic_private__", None)
        return made

    @property
    def id(self) -> str:
        """The identifier: by convention the field `<kind>_id`."""
        return getattr(self, f"{self.kind}_id")


def record_key(kind: str, record_id: str) -> str:
    """The key of one record."""
    return f"{PREFIX}:{kind}:{record_id}"


def index_key(kind: str, index: str, parts: Iterable[str] = ()) -> str:
    """The key of one sorted set."""
    return ":".join([f"{PREFIX}:{kind}.{index}", *parts])


def key_pattern(kind: str, index: str) -> str:
    """What the keys of all sets of an index look like, for SCAN."""
    return f"{PREFIX}:{kind}.{index}:*".replace("{", "\\{").replace("}", "\\}")


def counters_key(name: str, parts: Iterable[str] = ()) -> str:
    """The key of one hash of counters."""
    return ":".join([f"{PREFIX}:count.{name}", *parts])


def batch_key(name: str, writer: str) -> str:
    """The key of a writer's last batch of counts."""
    return f"{PREFIX}:batch.{name}:{writer}"


def entries(record: Record | None) -> dict[str, float]:
    """Every sorted set that the record stands in, with its score there."""
    if record is None:
        return {}
    found: dict[str, float] = {}
    for index in record.indexes:
        sets = tuple(index.parts(record))
        if sets:
            key, score = f"{PREFIX}:{record.kind}.{index.name}", index.score(record)
            for parts in sets:
                found[":".join((key, *parts))] = score
    return found
