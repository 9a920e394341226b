"""Streams: Server-Sent Events, and the jobs that one WebSocket is made of."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from starlette.responses import StreamingResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

KEEP_ALIVE_SECONDS = 15.0
SEND_SECONDS = 10.0  # a peer that takes nothing for so long is gone
TRY_AGAIN_LATER = 1013
POLICY_VIOLATION = 1008


def sse(data: str | bytes | dict[str, Any], event: str = "", event_id: str = "") -> bytes:
    """One event of `text/event-stream`; a dict becomes JSON."""
    if isinstance(data, dict):
        data = json.dumps(data, separators=(",", ":"))
    text = data.decode() if isinstance(data, bytes) else data
    head = (f"id: {event_id}\n" if event_id else "") + (f"event: {event}\n" if event else "")
    return (head + "".join(f"data: {line}\n" for line in text.splitlines() or [""]) + "\n").encode()


def event_stream(chunks: AsyncIterator[bytes]) -> StreamingResponse:
    """An answer of Server-Sent Events that no proxy holds back; a silent one is kept open by comments.

    The iterator is closed when the client goes away: what it holds is let go in its `finally`.
    """
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(kept_alive(chunks), media_type="text/event-stream", headers=headers)


async def kept_alive(chunks: AsyncIterator[bytes], every_seconds: float = KEEP_ALIVE_SECONDS) -> AsyncIterator[bytes]:
    """The chunks, and a comment whenever none came for `every_seconds`."""
    following: asyncio.Future[bytes] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(anext(chunks))
            done, _ = await asyncio.wait((following,), timeout=every_seconds)
            if not done:
                yield b": still here\n\n"
                continue
            try:
                chunk = following.result()
            except StopAsyncIteration:
                return
            following = None
            yield chunk
    finally:
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()


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
