"""AIVillage, `GET /v1/events`: the event stream as Server-Sent Events, for whoever has no WebSocket."""

import asyncio
from contextlib import suppress
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.errors import Forbidden, Invalid
from cluster.events.model import Event, order
from cluster.identity.model import Principal
from serve_apps.core import Core, FromCore
from serve_apps.dialects.aivillage import socket as protocol
from serve_apps.dialects.aivillage.topics import FILTERS, TOPICS, Message, Subscription, message, subscription
from serve_apps.kit.admission import address_of
from serve_apps.kit.auth import SignedIn, credential
from serve_apps.kit.call import call_of
from serve_apps.kit.connections import Connection
from serve_apps.kit.feed import Feed
from serve_apps.scopes import TOPICS as SCOPES

router = APIRouter()

RETRY_MS = 2000  # how long a browser waits before it comes back
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]  # fmt: skip
BEAT = b":\n\n"


def _parameter(name: str, about: str, where: str = "query", many: bool = True) -> dict[str, Any]:
    text: dict[str, Any] = {"type": "string"}
    schema = {"type": "array", "items": text} if many else text
    return {"name": name, "in": where, "required": False, "description": about, "schema": schema}


PARAMETERS = [
    _parameter("topics", f"Of {', '.join(sorted(TOPICS))}; without it, all that the caller may see"),
    _parameter("last_event_id", "Tell what came after this event; evt_0-0: all that is kept", many=False),
    _parameter("Last-Event-ID", "The same, as a browser sends it when it comes back", "header", many=False),
    *(_parameter(name, "Only events with this value, where they have such a field") for name in FILTERS),
]


@router.get(
    "/v1/events",
    response_class=Response,
    responses={200: {"description": "Events without end", "content": {"text/event-stream": {}}}, 403: {}},
    openapi_extra={"parameters": PARAMETERS},
)
async def follow(request: Request, who: SignedIn, core: FromCore) -> Response:
    """Events as they happen: `id`, `event` (the message's type) and `data` (the message, as on `/ws`)."""
    wanted, after = asked(who, request)
    oldest, newest = await core.store.ends()
    begin, gap = (newest, None) if after is None else protocol.resume(after, oldest, newest)
    return Followed(core, wanted, begin, gap)


def asked(who: Principal, request: Request) -> tuple[Subscription, str | None]:
    """What is wanted, and after which event. Raises `Invalid`, `Forbidden`."""
    told = request.query_params
    unknown = [name for name in told if name not in (*FILTERS, "topics", "last_event_id")]
    if unknown:
        raise Invalid(f"no such parameter: {unknown[0][:100]}", field=unknown[0][:100], allowed_values=list(FILTERS))
    topics = [topic for listed in told.getlist("topics") for topic in listed.split(",") if topic]
    allowed = topics or [topic for topic in TOPICS if who.may(SCOPES[topic])]
    if not allowed:
        raise Forbidden("none of the topics is open to these scopes", scopes=sorted(who.scopes))
    filters = {name: told.getlist(name) for name in FILTERS if name in told}
    # A browser that comes back repeats the URL, and says in the header how far it came meanwhile.
    after = request.headers.get("last-event-id") or told.get("last_event_id")
    return subscription(who, allowed, filters), protocol.event_id(after) if after else None


def as_event(event: Event) -> bytes:
    """An event as the stream's bytes."""
    told = message(event)
    return b"id: %b\n" % event.event_id.encode() + named(told)


def named(told: Message) -> bytes:
    """A message under its type."""
    return b"event: %b\ndata: %b\n\n" % (told["type"].encode(), orjson.dumps(told))


class Followed(Response):
    """The answer, which ends when the client leaves or its connection is ended."""

    def __init__(self, core: Core, wanted: Subscription, begin: str, gap: protocol.Gap | None) -> None:
        self.core, self.wanted, self.begin, self.gap = core, wanted, begin, gap
        self.status_code, self.background, self.raw_headers = 200, None, list(HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        call = call_of(scope)
        call.lasting = True
        with self.core.connections.enter(call.principal, credential(scope), address_of(scope)) as connection:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

            async def put_out(part: bytes) -> None:
                await send({"type": "http.response.body", "body": part, "more_body": True})

            feed = Feed(self.core.hub, connection, as_event, put_out)
            try:
                self._begin(feed)
                connection.beat = lambda: feed.outbox.put(BEAT)
                async with connection.life():
                    while (await receive())["type"] != "http.disconnect":
                        pass
            finally:
                feed.stop()
                await self._end(connection, feed, send)

    def _begin(self, feed: Feed) -> None:
        # An id without data moves the browser's own place: should it come back before the first event, nothing is lost.
        feed.outbox.put(b"retry: %d\nid: %b\n\n" % (RETRY_MS, self.begin.encode()))
        if self.gap is not None:
            feed.outbox.put(named(protocol.gap(self.gap, self.core.clock())))
        passes = self.wanted.passes if self.wanted.is_picky else None
        feed.follow(self.wanted.nouns, self.wanted.owners, passes, order(self.begin))

    async def _end(self, connection: Connection, feed: Feed, send: Send) -> None:
        ended = connection.ended
        if ended is not None and not ended.dead:
            await feed.outbox.flush(protocol.FLUSH_SECONDS)
            last = named({"type": "end", "code": ended.code, "message": ended.reason})
            with suppress(TimeoutError, OSError):
                async with asyncio.timeout(protocol.FLUSH_SECONDS):
                    await send({"type": "http.response.body", "body": last, "more_body": False})
        feed.outbox.close()
