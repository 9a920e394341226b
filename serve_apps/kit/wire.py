"""uvicorn's WebSocket, with what it lacks for many connections and for peers that take nothing.

An app finds it in `scope["extensions"][WIRE]`, and does without where another server has none.
"""

from typing import Any

from starlette.types import Scope
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode

WIRE = "village.wire"
MOST_FRAGMENTS = 1024  # of one message
LINGER_SECONDS = 10.0  # a socket that is done waits no longer for a peer to take what is left


class Wire(WebSocketsSansIOProtocol):
    """The protocol of one connection. uvicorn makes one for each."""

    def handle_connect(self, event: Any) -> None:
        """See uvicorn: the opening handshake."""
        super().handle_connect(event)
        if self.handshake_initiated and not self.handshake_complete:
            self.scope["extensions"][WIRE] = self  # type: ignore[typeddict-unknown-key]

    @property
    def is_open(self) -> bool:
        """Whether frames may be written."""
        return self.handshake_complete and not (self.close_sent or self.disconnected or self.transport.is_closing())

    def write(self, frame: bytes) -> bool:
        """Write a finished frame, if the peer takes one now. No task runs for it, and no layer of the app."""
        if not self.is_open or not self.writable.is_set():
            return False
        self.transport.write(frame)
        return True

    async def write_when_taken(self, frame: bytes) -> None:
        """Write a finished frame as soon as the peer takes one. Raises OSError once the connection is closed."""
        while not self.write(frame):
            if not self.is_open:
                raise ClientDisconnected
            await self.writable.wait()

    def take_at_most(self, size: int) -> None:
        """Close with 1009 when the peer sends a message of more bytes than this."""
        self.conn.max_message_size = size

    def abort(self) -> None:
        """Drop the connection with all that is still to be written."""
        self.transport.abort()

    async def send(self, message: Any) -> None:
        """See uvicorn, which takes a handshake that was refused with an answer for one that nobody answered."""
        await super().send(message)
        if message["type"] == "websocket.accept":
            self.request = self.response = None  # type: ignore[assignment]  # 4 KiB that nobody looks at again
        elif message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            self.handshake_complete = True

    def handle_ping(self) -> None:
        """See uvicorn. Its pongs wait for nobody: a peer that pings and does not read would fill the memory."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.abort()

    def handle_cont(self, event: Frame) -> None:
        """See uvicorn. Fragments without a byte in them would never reach the size limit."""
        if len(self.frames) < MOST_FRAGMENTS:
            super().handle_cont(event)
        else:
            self.abort()

    def keepalive_timeout(self) -> None:
        """See uvicorn: the peer has not answered a ping. What it has not taken until now it need not have."""
        super().keepalive_timeout()
        self.loop.call_later(1.0, self.abort)

    def on_task_complete(self, task: Any) -> None:
        """See uvicorn: the app is done. `close` on a transport waits for the peer as long as TCP does."""
        super().on_task_complete(task)
        if not self.disconnected:
            self.loop.call_later(LINGER_SECONDS, self.abort)


def wire_of(scope: Scope) -> Wire | None:
    """The connection under the app, where it takes finished frames: one of ours, and not one that compresses."""
    wire = scope.get("extensions", {}).get(WIRE)
    return wire if wire is not None and not wire.conn.extensions else None


def framed(text: bytes) -> bytes:
    """The frame of a text message from a server."""
    return Frame(Opcode.TEXT, text).serialize(mask=False, extensions=[])
