"""The protocol of `/ws`, without the socket: what a client may say, read strictly, and what it is told."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson

from cluster.clock import iso
from cluster.errors import Invalid, LimitExceeded, VillageError
from cluster.events.model import START, order
from cluster.identity.model import Principal
from serve_apps.dialects.aivillage.errors import CODES
from serve_apps.dialects.aivillage.topics import TOPICS, Message, Subscription

LARGEST_MESSAGE = 16 * 1024  # bytes of one message of a client
LONGEST_TOKEN = 8 * 1024
FLUSH_SECONDS = 2.0  # what is waiting when a connection ends has so long to go out


@dataclass(frozen=True)
class Ping:
    """Answered with a pong."""


@dataclass(frozen=True)
class Authenticate:
    """A credential that comes as a message, so that it needs not stand in a URL."""

    token: str


@dataclass(frozen=True)
class Subscribe:
    """From now on these topics and no others; after the event `after`, where one is named."""

    topics: tuple[Any, ...]
    filters: dict[str, Any] = field(default_factory=dict)
    after: str | None = None


@dataclass(frozen=True)
class Unsubscribe:
    """These topics no more; all of them if None."""

    topics: frozenset[str] | None


@dataclass(frozen=True)
class GetStatus:
    """How these components fare; all of them if empty."""

    components: tuple[str, ...]


Asked = Ping | Authenticate | Subscribe | Unsubscribe | GetStatus


def read(text: str) -> Asked:
    """What a message of the client asks for. Raises `Invalid`."""
    try:
        said = orjson.loads(text)
    except ValueError as error:  # too deep, not UTF-8 and no number are ValueErrors here as well
        raise Invalid("the message is not JSON") from error
    if not isinstance(said, dict):
        raise Invalid("a message is a JSON object")
    kind = said.get("type")
    if not isinstance(kind, str) or kind not in READERS:
        raise Invalid("unknown type", field="type", allowed_values=sorted(READERS))
    return READERS[kind](said)


def _ping(_: dict[str, Any]) -> Ping:
    return Ping()


def _authenticate(said: dict[str, Any]) -> Authenticate:
    token = said.get("token")
    if not isinstance(token, str) or not 0 < len(token) <= LONGEST_TOKEN:
        raise Invalid("token is an access token or an API key", field="token")
    return Authenticate(token.strip())


def _subscribe(said: dict[str, Any]) -> Subscribe:
    topics, filters, after = said.get("topics"), said.get("filters"), said.get("last_event_id")
    if not isinstance(topics, list):
        raise Invalid("topics is a list", field="topics", allowed_values=sorted(TOPICS))
    if filters is not None and not isinstance(filters, dict):
        raise Invalid("filters is an object", field="filters")
    return Subscribe(tuple(topics), filters or {}, None if after is None else event_id(after))


def _unsubscribe(said: dict[str, Any]) -> Unsubscribe:
    topics = said.get("topics")
    if topics is None:
        return Unsubscribe(None)
    if not isinstance(topics, list) or not all(isinstance(topic, str) and topic in TOPICS for topic in topics):
        raise Invalid("topics is a list of topics", field="topics", allowed_values=sorted(TOPICS))
    return Unsubscribe(frozenset(topics))


def _get_status(said: dict[str, Any]) -> GetStatus:
    components = said.get("components") or []
    if not isinstance(components, list) or not all(isinstance(name, str) for name in components):
        raise Invalid("components is a list of names", field="components")
    return GetStatus(tuple(components))


READERS = {
    "ping": _ping, "authenticate": _authenticate, "subscribe": _subscribe, "unsubscribe": _unsubscribe,
    "get_status": _get_status,
}  # fmt: skip


def event_id(given: Any) -> str:
    """The id of an event as it came from outside. Raises `Invalid`."""
    try:
        if isinstance(given, str) and order(given):
            return given
    except ValueError:
        pass
    raise Invalid("last_event_id is not an event's id", field="last_event_id")


@dataclass(frozen=True)
class Gap:
    """Events after `after` that nobody can tell any more."""

    after: str
    reason: str


def resume(after: str, oldest: str, newest: str) -> tuple[str, Gap | None]:
    """Where a reader that has seen `after` goes on in a stream of these ends, and what it cannot be told any more.

    START asks for all that is kept, whatever that is.
    """
    if order(after) > order(newest):
        return newest, Gap(after, "the stream has not come that far: it lost its end, or was begun anew")
    if after != START and order(after) < order(oldest):
        return after, Gap(after, "the stream no longer keeps all that came after that event")
    return after, None


def greeting(connection_id: str, who: Principal | None, services: dict[str, bool], last: str, at: datetime) -> Message:
    """The first message. `last`: the event after which a subscription misses nothing of what comes from now on."""
    return {
        "type": "connection_established",
        "message": "Connected to AIVillage Unified API Gateway",
        "services": services,
        "authenticated": who is not None,
        "last_event_id": last or None,
        "timestamp": iso(at),
        "connection_id": connection_id,
    }


def pong(at: datetime) -> Message:
    """The answer to a ping."""
    return {"type": "pong", "timestamp": iso(at)}


def authenticated(who: Principal, at: datetime) -> Message:
    """The answer to a good credential."""
    return {"type": "authenticated", "user_id": who.owner, "scopes": sorted(who.scopes), "timestamp": iso(at)}


def subscribed(kind: str, to: Subscription, last: str | None, at: datetime) -> Message:
    """What the connection is subscribed to from now on, and the event after which it begins."""
    filters = {name: values[0] if len(values) == 1 else list(values) for name, values in to.filters.items()}
    return {
        "type": kind, "topics": sorted(to.topics), "filters": filters, "last_event_id": last, "timestamp": iso(at),
    }  # fmt: skip


def gap(lost: Gap, at: datetime) -> Message:
    """Comes before the events that follow the gap. Whoever gets it reads the records again."""
    return {"type": "gap", "message": lost.reason, "last_event_id": lost.after, "timestamp": iso(at)}


def status(components: tuple[str, ...], told: dict[str, Any], at: datetime) -> Message:
    """The answer to get_status. Raises `Invalid`."""
    if any(name not in told for name in components):
        raise Invalid("unknown component", field="components", allowed_values=sorted(told))
    return {
        "type": "status", "components": {name: told[name] for name in components or sorted(told)}, "timestamp": iso(at),
    }  # fmt: skip


def refusal(error: VillageError, at: datetime) -> Message:
    """An error, as a message."""
    code, _ = next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    details = dict(error.details)
    if isinstance(error, LimitExceeded) and "retry_after_seconds" in details:
        details["suggested_retry_after"] = details.pop("retry_after_seconds")  # the document's word
    return {
        "type": "error", "error_code": code, "message": error.message, "details": details, "timestamp": iso(at),
    }  # fmt: skip
