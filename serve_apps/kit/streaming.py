"""WebSockets: sending and closing without waiting for a peer that does not listen."""

import asyncio
from contextlib import suppress

from starlette.websockets import WebSocket, WebSocketDisconnect

CLOSE_SECONDS = 2.0


async def send_bytes(socket: WebSocket, text: bytes) -> None:
    """A text message that is UTF-8 already."""
    await socket.send_text(text.decode())


async def close(socket: WebSocket, code: int, reason: str) -> None:
    """Say goodbye, if the peer takes it."""
    # It may be closed already, or closes meanwhile.
    with suppress(TimeoutError, RuntimeError, OSError, WebSocketDisconnect):
        async with asyncio.timeout(CLOSE_SECONDS):
            await socket.close(code, reason)
