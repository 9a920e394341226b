"""WebSockets: the jobs that one is made of. Server-Sent Events are in `serve_apps.chat.stream`."""

import asyncio
import contextlib
import json
from collections.abc import Coroutine
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

SEND_SECONDS = 10.0  # a peer that takes nothing for so long is gone
TRY_AGAIN_LATER = 1013
POLICY_VIOLATION = 1008


async def send_json(socket: WebSocket, message: dict[str, Any]) -> None:
    """Send, or raise TimeoutError where the peer does not take it."""
    async with asyncio.timeout(SEND_SECONDS):
        await socket.send_text(json.dumps(message, separators=(",", ":")))


async def close(socket: WebSocket, code: int, reason: str) -> None:
    """Say goodbye, and do not wait for a peer that does not listen."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SEND_SECONDS):
            await socket.close(code, reason)


async def first_to_end(*jobs: Coroutine[Any, Any, None]) -> None:
    """Run the jobs of one socket until one of them ends, then stop the others; a peer that leaves is no error."""
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            try:
                task.result()
            except (WebSocketDisconnect, TimeoutError):
                continue
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
