"""AI Farm, `/farm/ws`: the socket around the protocol of `cluster/farm/protocol.py`."""

import asyncio
import re

import orjson
from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from cluster.errors import Invalid, UnsupportedMedia, VillageError
from cluster.events.model import Event
from cluster.farm import holding, protocol
from cluster.farm.fleet import Held
from cluster.farm.model import Client
from cluster.farm.protocol import Conversation, Heartbeat, Message, Progress, Replaced, Result, TaskRequest
from cluster.identity.model import Principal
from cluster.ids import new_id
from cluster.limits.policy import Span
from serve_apps.core import Core
from serve_apps.dialects.aifarm.errors import CODES
from serve_apps.kit.admission import address_of
from serve_apps.kit.auth import credential, signed_in
from serve_apps.kit.call import call_of
from serve_apps.kit.connections import INTERNAL_ERROR, POLICY_VIOLATION, TRY_AGAIN_LATER, UNSUPPORTED, Connection
from serve_apps.kit.messages import MessageLimit, TooManyMessages
from serve_apps.kit.outbox import Outbox
from serve_apps.kit.streaming import close, send_bytes

router = APIRouter()

MESSAGES: dict[Span, int] = {"minute": 600}  # of one client: ten a second
FLUSH_SECONDS = 2.0
MOST_WAITING = 1000  # events for one client that it has not been told of


async def work(socket: WebSocket) -> None:
    """A farm client, by its `Client-ID`: it tells how it is, asks for tasks, and is told to pause, resume or stop."""
    call = call_of(socket.scope)
    who, core = signed_in(call), call.core
    client_id = socket.headers.get("client-id", "")
    if not re.fullmatch(protocol.CLIENT_ID, client_id):
        raise Invalid("a Client-ID of 1 to 128 letters, digits, `.`, `_` and `-` is needed", field="Client-ID")
    with core.connections.enter(who, credential(socket.scope), address_of(socket.scope)) as connection:
        session = Session(socket, core, connection, client_id)
        client = await session.enter(who)
        try:
            await socket.accept()
            call.headers.clear()  # they are sent, and a connection keeps its call for hours
            await session.run(client)
        finally:
            await session.leave()


# Not FastAPI's: its exit stacks and its solved dependencies would be kept for as long as the socket is open.
router.add_websocket_route("/farm/ws", work, "work")


class Session:
    """One connection of one client."""

    def __init__(self, socket: WebSocket, core: Core, connection: Connection, client_id: str) -> None:
        self.socket, self.core, self.connection = socket, core, connection
        self.fleet = core.farm.fleet
        self.client_id, self.connection_id = client_id, new_id("conn")
        self.limit = MessageLimit(MESSAGES)
        self.known = Conversation(client_id, self.fleet.lease.total_seconds())
        self.outbox = Outbox(lambda text: send_bytes(socket, text), self._lost)
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._busy = asyncio.Lock()  # what the client says and what happens to it are told in one order

    # ---- coming and going

    async def enter(self, who: Principal) -> Client:
        """Known here and in the store, in this order: no event is missed. Raises `Forbidden`, `Conflict`."""
        await self.core.desk.enter(self)
        try:
            return await self.fleet.connect(who, self.client_id, self.core.desk.desk_id, self.connection_id)
        except BaseException:
            await self.core.desk.leave(self)
            raise

    async def leave(self) -> None:
        """The client is no longer here; what it holds stays its own for as long as the lease."""
        try:
            await self.fleet.disconnect(self.client_id, self.connection_id)
        except VillageError:
            pass  # the store is away: the desk gives back what is still handed out over this connection
        finally:
            await self.core.desk.leave(self)

    async def run(self, client: Client) -> None:
        """Until the client leaves or the connection ends."""
        pump = None
        try:
            async with self.connection.life():
                held = await self.fleet.held(client)
                self._say(*self.known.resumes(held.task, held.rank, self.core.clock()))
                pump = asyncio.create_task(self._pump())
                await self._listen()
        except WebSocketDisconnect:
            pass
        except Exception:
            self.connection.end(INTERNAL_ERROR, "an unexpected error")
            raise
        finally:
            if pump is not None:
                pump.cancel()
            await self._end()

    async def _end(self) -> None:
        ended = self.connection.ended
        if ended is not None and not ended.dead and self.socket.client_state is WebSocketState.CONNECTED:
            await self.outbox.flush(FLUSH_SECONDS)
            await close(self.socket, ended.code, ended.reason)
        self.outbox.close()

    def _lost(self, stalled: bool) -> None:
        self.connection.end(TRY_AGAIN_LATER, "too far behind", dead=stalled)

    def _say(self, *told: Message) -> None:
        for message in told:
            self.outbox.put(orjson.dumps(message))

    # ---- what the client says

    async def _listen(self) -> None:
        while True:
            received = await self.socket.receive()
            if received["type"] == "websocket.disconnect":
                return
            text = received.get("text")
            if text is None:
                self.connection.end(UNSUPPORTED, "messages are text")
            elif len(text) > protocol.LARGEST_MESSAGE:
                self.connection.end(POLICY_VIOLATION, f"a message has at most {protocol.LARGEST_MESSAGE} bytes")
            else:
                await self._answer(text)

    async def _answer(self, text: str) -> None:
        try:
            self.limit.hit(self.core.clock())
            said = protocol.read(text, self.client_id)
            async with self._busy:
                await self._do(said)
        except UnsupportedMedia as error:
            self.connection.end(UNSUPPORTED, error.message)
        except Replaced:
            self.connection.end(POLICY_VIOLATION, "replaced")
        except VillageError as error:
            self._refuse(error)
            if isinstance(error, TooManyMessages):
                self.connection.end(POLICY_VIOLATION, "too many messages")

    def _refuse(self, error: VillageError) -> None:
        code = next(CODES[kind][0] for kind in type(error).__mro__ if kind in CODES)
        self._say(protocol.refusal(code, error.message, error.details, self.core.clock()))

    async def _do(self, said: protocol.Said) -> None:
        match said:
            case Heartbeat():
                held = await self.fleet.heartbeat(self.client_id, self.connection_id, said)
                if self.known.waiting and held.client.holds:  # however the event about it was missed
                    self._give(await self.fleet.held(held.client), resumed=False)
            case TaskRequest():
                held, asked = await self.fleet.ask(self.client_id, self.connection_id), self.known.waiting
                self.known.waiting = True
                self._give(held, resumed=not asked)
            case Progress():
                if why := await self.fleet.progress(self.client_id, self.connection_id, said):
                    self._not_its(said.task_id, why)
            case Result():
                why = await self.fleet.result(self.client_id, self.connection_id, said)
                if not why:
                    self.known.over()
                self._say(protocol.acknowledged(said.task_id, why, self.core.clock()))

    def _give(self, held: Held, resumed: bool) -> None:
        if held.rank is not None and held.task is not None and holding.belongs(held.client, held.rank, held.task):
            self._say(*self.known.task(held.task, held.rank, resumed, self.core.clock()))

    def _not_its(self, task_id: str, why: str) -> None:
        at = self.core.clock()
        if why == "not_assigned":
            told = protocol.refusal("NOT_FOUND", "this client holds no rank of such a task", {"task_id": task_id}, at)
            self._say(told)
        else:
            self._say(*self.known.control("stop", at, task_id))

    # ---- what happens to the client

    @property
    def task_id(self) -> str:
        """See `desk.Guest`."""
        return self.known.task_id

    def notice(self, event: Event) -> None:
        """See `desk.Guest`."""
        if self.events.qsize() >= MOST_WAITING:
            self.connection.end(TRY_AGAIN_LATER, "too far behind")
        else:
            self.events.put_nowait(event)

    async def _pump(self) -> None:
        while True:
            event = await self.events.get()
            try:
                async with self._busy:
                    await self._happened(event)
            except VillageError:
                # The next heartbeat tells of what the client was given; a status it learns when it comes back.
                self.connection.end(TRY_AGAIN_LATER, "the store was away")
            except Exception:
                self.connection.end(INTERNAL_ERROR, "an unexpected error")
                raise

    async def _happened(self, event: Event) -> None:
        at, about = self.core.clock(), event.data
        match event.kind:
            case "farm.client_connected":
                self.connection.end(POLICY_VIOLATION, "replaced")
            case "farm.rank_assigned":
                if self.known.waiting:
                    client = await self.core.store.find(Client, self.client_id)
                    if client is not None and client.connection == self.connection_id:
                        self._give(await self.fleet.held(client), resumed=False)
            case "farm.rank_cut" | "farm.rank_timeout":
                if (self.known.rank_id, self.known.attempt) == (about["rank_id"], about["attempt"]):
                    self._say(*self.known.control("stop", at))
            case "farm.task_paused":
                self._say(*self.known.control("pause", at))
            case "farm.task_resumed":
                self._say(*self.known.control("resume", at))
            case "farm.task_cancelled" | "farm.task_failed" | "farm.task_deleted":
                self._say(*self.known.control("stop", at))
