"""The bytes of a stream, with as little as possible between the engine and the socket.

At thousands of tokens per second the layers of a general streaming response cost more than the tokens do: an event is
bytes from the start, leaves in one send, and no task is made for it.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from cluster.errors import VillageError

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]  # fmt: skip

log = structlog.get_logger()


class EventStream(Response):
    """Events, written as they come. The generator is closed when the client goes away.

    What the generator raises before its first event becomes the dialect's ordinary error answer; what it raises later
    becomes one last event, `failed(error)`.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], failed: Callable[[Exception], bytes]) -> None:
        self.events, self.failed = events, failed
        self.status_code, self.background, self.raw_headers = 200, None, list(HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        pump = asyncio.create_task(self._pump(send))
        gone = asyncio.create_task(_disconnect(receive))
        try:
            await asyncio.wait((pump, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            pump.cancel()  # nothing happens to one that is done
        with suppress(asyncio.CancelledError):
            await pump

    async def _pump(self, send: Send) -> None:
        async with aclosing(self.events) as events:
            message: Message = {"type": "http.response.body", "body": await anext(events), "more_body": True}
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send(message)
            try:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            except Exception as error:
                if not isinstance(error, VillageError):
                    log.exception("a stream broke")
                await send({"type": "http.response.body", "body": self.failed(error), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def while_wanted(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away. Raises `ClientGone`."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnect(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        task.cancel()
    try:
        return await task
    except asyncio.CancelledError as cancelled:
        if gone.done() and not gone.cancelled():
            raise ClientGone from cancelled
        raise


async def _disconnect(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
