"""A real agent on loopback for tests: it takes deliveries over HTTP and does with them what the test says."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cluster.workers.signature import signed_bytes

Work = Callable[[dict[str, Any]], Awaitable[dict[str, Any] | int | bytes]]  # JSON, a status, or raw bytes


async def complete(task: dict[str, Any]) -> dict[str, Any]:
    """Does what was asked at once."""
    return {"status": "COMPLETED", "result_data": {"echo": task["input_data"]}}


async def fail(_: dict[str, Any]) -> dict[str, Any]:
    """Cannot."""
    return {"status": "FAILED", "error": "asked to fail"}


async def accept(_: dict[str, Any]) -> int:
    """Takes the task and reports later."""
    return 202


async def forget(_: dict[str, Any]) -> dict[str, Any]:
    """Never answers."""
    await asyncio.Event().wait()
    return {}


class WorkingAgent:
    """Counts what it is given: `tasks` in order, their `headers`, `inside` now, `peak` at most at once, `dropped`."""

    def __init__(self, work: Work = complete) -> None:
        self.work = work
        self.tasks: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.inside = self.peak = self.dropped = 0
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def _handle(self, request: web.Request) -> web.Response:
        task = await request.json()
        self.tasks.append(task)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.inside += 1
        self.peak = max(self.peak, self.inside)
        try:
            answer = await self.work(task)
        except asyncio.CancelledError:
            self.dropped += 1
            raise
        finally:
            self.inside -= 1
        if isinstance(answer, bytes):
            return web.Response(body=answer)
        return web.Response(status=answer) if isinstance(answer, int) else web.json_response(answer)

    async def start(self, port: int = 0) -> "WorkingAgent":
        """Listen on loopback."""
        app = web.Application()
        app.router.add_post("/execute", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}/execute"
        return self

    async def stop(self) -> None:
        """Stop listening, and end what is in work."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def times(self, task_id: str) -> int:
        """How often the task came."""
        return sum(task["task_id"] == task_id for task in self.tasks)


@asynccontextmanager
async def working(work: Work = complete):
    """An agent for the length of a block."""
    agent = await WorkingAgent(work).start()
    try:
        yield agent
    finally:
        await agent.stop()


def registration(agent_id: str, endpoint: str, tags: list[str], **metadata: Any) -> dict[str, Any]:
    """The body of a registration, signed by a new Ed25519 key."""
    key = Ed25519PrivateKey.generate()
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    name = f"Agent {agent_id}"
    signed = key.sign(signed_bytes(agent_id, name, pem, endpoint, tags))
    return {
        "agent_id": agent_id, "display_name": name, "public_key": pem, "endpoint": endpoint, "tags": tags,
        "signature": base64.b64encode(signed).decode(), "metadata": metadata,
    }  # fmt: skip
