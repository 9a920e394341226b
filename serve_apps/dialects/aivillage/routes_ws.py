"""AIVillage, `/ws`: the socket around the protocol of `socket.py`."""

from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from cluster.errors import Forbidden, Unauthenticated, Unavailable, VillageError
from cluster.events.model import Event, order
from cluster.ids import new_id
from cluster.workers.model import Agent
from serve_apps.core import Core
from serve_apps.dialects.aivillage import socket as protocol
from serve_apps.dialects.aivillage.routes_system import services
from serve_apps.dialects.aivillage.topics import Message, Subscription, message, subscription
from serve_apps.kit.admission import address_of
from serve_apps.kit.auth import credential
from serve_apps.kit.call import call_of
from serve_apps.kit.connections import INTERNAL_ERROR, POLICY_VIOLATION, TOO_BIG, UNSUPPORTED, Connection
from serve_apps.kit.feed import Feed
from serve_apps.kit.hub import id_at
from serve_apps.kit.messages import MessageLimit, TooManyMessages
from serve_apps.kit.streaming import close, send_bytes
from serve_apps.kit.wire import framed, wire_of

router = APIRouter()

MOST_REFUSALS = 3  # credentials that one connection may try in vain


def as_text(event: Event) -> bytes:
    """An event as the text of a message."""
    return orjson.dumps(message(event))


def as_frame(event: Event) -> bytes:
    """An event as it goes over the wire."""
    return framed(as_text(event))


async def live(socket: WebSocket) -> None:
    """Live updates. A token is optional; without one there is ping and get_status. A bad one is refused."""
    call = call_of(socket.scope)
    if call.refusal is not None:
        raise call.refusal
    connections = call.core.connections
    with connections.enter(call.principal, credential(socket.scope), address_of(socket.scope)) as connection:
        await socket.accept()
        call.headers.clear()  # they are sent, and a connection keeps its call for hours
        await Session(socket, call.core, connection).run()


# Not FastAPI's: its exit stacks and its solved dependencies would be kept for as long as the socket is open.
router.add_websocket_route("/ws", live, "live")


class Session:
    """One client: what it has asked for, and how it is answered."""

    def __init__(self, socket: WebSocket, core: Core, connection: Connection) -> None:
        self.socket, self.core, self.connection = socket, core, connection
        self.subscription = Subscription()
        self.limit = MessageLimit(core.limiter.policy.sockets.messages)
        self.refusals = 0
        self.wire = wire_of(socket.scope)
        if self.wire is None:
            self.feed = Feed(core.hub, connection, as_text, partial(send_bytes, socket))
        else:
            self.wire.take_at_most(protocol.LARGEST_MESSAGE)
            self.feed = Feed(core.hub, connection, as_frame, self.wire.write_when_taken, self.wire.write)

    async def run(self) -> None:
        """Until the client leaves or the connection ends."""
        try:
            async with self.connection.life():
                await self._greet()
                await self._listen()
        except WebSocketDisconnect:
            pass
        except Exception:
            self.connection.end(INTERNAL_ERROR, "an unexpected error")
            raise
        finally:
            self.feed.stop()
            await self._end()

    async def _end(self) -> None:
        ended, outbox = self.connection.ended, self.feed.outbox
        if ended is not None and not ended.dead and self.socket.client_state is WebSocketState.CONNECTED:
            await outbox.flush(protocol.FLUSH_SECONDS)
            await close(self.socket, ended.code, ended.reason)
        outbox.close()
        if self.wire is not None and ended is not None and ended.dead:
            self.wire.abort()

    def say(self, told: Message) -> None:
        """Put a message out after all that was put out before."""
        text = orjson.dumps(told)
        self.feed.outbox.put(text if self.wire is None else framed(text))

    async def _greet(self) -> None:
        core = self.core
        has = {name: service["available"] for name, service in (await services(core)).items()}
        try:
            last = await core.hub.newest()
        except Unavailable:
            last = ""
        self.say(protocol.greeting(new_id("conn"), self.connection.principal, has, last, core.clock()))

    async def _listen(self) -> None:
        while True:
            received = await self.socket.receive()
            if received["type"] == "websocket.disconnect":
                return
            text = received.get("text")
            if text is None:
                self.connection.end(UNSUPPORTED, "messages are text")
                continue
            if len(text) > protocol.LARGEST_MESSAGE:
                self.connection.end(TOO_BIG, f"a message has at most {protocol.LARGEST_MESSAGE} bytes")
                continue
            await self._answer(text)

    async def _answer(self, text: str) -> None:
        try:
            self.limit.hit(self.core.clock())
            await self._do(protocol.read(text))
        except VillageError as error:
            self.say(protocol.refusal(error, self.core.clock()))
            if isinstance(error, TooManyMessages):
                self.connection.end(POLICY_VIOLATION, "too many messages")

    async def _do(self, asked: protocol.Asked) -> None:
        at = self.core.clock
        match asked:
            case protocol.Ping():
                self.say(protocol.pong(at()))
            case protocol.GetStatus():
                self.say(protocol.status(asked.components, await status_of(self.core), at()))
            case protocol.Subscribe():
                await self._subscribe(asked)
            case protocol.Unsubscribe():
                self._unsubscribe(asked)
            case protocol.Authenticate():
                await self._authenticate(asked.token)

    async def _subscribe(self, asked: protocol.Subscribe) -> None:
        wanted = subscription(self.connection.principal, asked.topics, asked.filters)
        oldest, newest = await self.core.store.ends()
        begin, gap = newest, None
        if asked.after is not None:
            begin, gap = protocol.resume(asked.after, oldest, newest)
        elif self.feed.place is not None:
            begin = id_at(self.feed.place)  # a change of topics misses nothing and repeats nothing
        self.subscription = wanted
        self.say(protocol.subscribed("subscribed", wanted, begin, self.core.clock()))
        if gap is not None:
            self.say(protocol.gap(gap, self.core.clock()))
        self._follow(begin)

    def _unsubscribe(self, asked: protocol.Unsubscribe) -> None:
        place = id_at(self.feed.place) if self.feed.place else None
        self.subscription = self.subscription.without(asked.topics)
        self.say(protocol.subscribed("unsubscribed", self.subscription, place, self.core.clock()))
        if place:
            self._follow(place)

    def _follow(self, begin: str) -> None:
        if not self.subscription.topics:
            self.feed.stop()
            return
        passes = self.subscription.passes if self.subscription.is_picky else None
        self.feed.follow(self.subscription.nouns, self.subscription.owners, passes, order(begin))

    async def _authenticate(self, token: str) -> None:
        known, identity = self.connection.principal, self.core.identity
        try:
            await identity.look()
            who = await identity.authenticate(token)
        except Unauthenticated:
            self.refusals += 1
            if self.refusals >= MOST_REFUSALS:
                self.connection.end(POLICY_VIOLATION, "no good credential")
            raise
        if known is not None and who.owner != known.owner:
            raise Forbidden("this connection belongs to somebody else")
        # What is subscribed must be allowed to the new credential as well, or the old one stays.
        kept = self.subscription.renewed(who)
        self.core.connections.renew(self.connection, who, token)
        place = id_at(self.feed.place) if self.feed.place else None
        self.subscription = kept
        self.say(protocol.authenticated(who, self.core.clock()))
        if place:
            self._follow(place)


async def status_of(core: Core) -> dict[str, Any]:
    """What `get_status` tells, by component."""
    total, active = await core.store.counts(Agent, "list", [("all",), ("status", "active")])
    known, routed = await services(core), (await core.readiness.checks()).get("router", True)
    connections, _ = core.metrics.sockets_now()
    return {
        "agents": {
            "status": "running" if routed else "away",
            "available": routed,
            "registered": total,
            "active": active,
        },
        "training": known["agent_forge"],
        "chat": known["chat"],
        "knowledge": known["knowledge"],
        "p2p": known["p2p_fog"],
        "fog": known["p2p_fog"],
        "websocket": {"status": "running", "available": True, "active_connections": connections},
    }
