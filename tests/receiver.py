"""A webhook receiver on loopback: keeps what it is sent, and answers as the test says."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

Answer = Callable[["Received"], Awaitable[int | web.Response]]


@dataclass(frozen=True)
class Received:
    """One request: its raw body, and its headers with lower-case names."""

    body: bytes
    headers: dict[str, str]
    path: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def fine(_: Received) -> int:
    """Takes it."""
    return 200


class Receiver:
    """`async with Receiver() as r`: `r.url`, and `r.got` in order; `inside` now, `peak` at most at once."""

    def __init__(self, answer: Answer = fine) -> None:
        self.answer = answer
        self.got: list[Received] = []
        self.inside = self.peak = 0
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self.runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.05)

    async def _handle(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        received = Received(await request.read(), headers, request.path_qs)
        self.got.append(received)
        self.inside += 1
        self.peak = max(self.peak, self.inside)
        try:
            answer = await self.answer(received)
        finally:
            self.inside -= 1
        return web.Response(status=answer) if isinstance(answer, int) else answer

    def answers(self, *statuses: int) -> "Receiver":
        """These in turn, and the last one from then on."""
        left = list(statuses)

        async def answer(_: Received) -> int:
            return left.pop(0) if len(left) > 1 else left[0]

        self.answer = answer
        return self

    def hangs(self) -> "Receiver":
        """Takes the request and never answers."""

        async def answer(_: Received) -> int:
            await asyncio.Event().wait()
            return 500

        self.answer = answer
        return self

    @property
    def events(self) -> list[str]:
        """What it was told of."""
        return [received.json["event"] for received in self.got]

    async def __aenter__(self) -> "Receiver":
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.port = self.runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.runner.cleanup()
