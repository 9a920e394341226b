"""A gateway behind a real uvicorn, and clients of its WebSockets: polite ones, and one that may do anything."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.client import ClientProtocol
from websockets.frames import Frame
from websockets.uri import parse_uri

from cluster.events.model import Event
from serve_apps.core import Core
from serve_apps.gateway import Gateway
from serve_apps.listener import Server, configured

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
EVERYBODYS = ["training_progress"]


@asynccontextmanager
async def serving(gateway: Gateway, path: str, **other: Any) -> AsyncIterator[Server]:
    """The gateway on a Unix socket, as a replica serves it."""
    server = Server(configured(gateway, uds=path, **({"lifespan": "off"} | other)))
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(0.01)
    try:
        yield server
    finally:
        server.should_exit = True
        await running


@asynccontextmanager
async def joined(
    path: str, headers: dict[str, str] | None = None, query: str = "", **other: Any
) -> AsyncIterator[ClientConnection]:
    """A client that has been greeted."""
    async with unix_connect(path, f"ws://village/ws{query}", additional_headers=headers, **other) as socket:
        assert (await said(socket))["type"] == "connection_established"
        yield socket


async def said(socket: ClientConnection) -> dict[str, Any]:
    return json.loads(await asyncio.wait_for(socket.recv(), 5))


async def asked(socket: ClientConnection, **message: Any) -> dict[str, Any]:
    await socket.send(json.dumps(message))
    return await said(socket)


async def subscribed(socket: ClientConnection, *topics: str, **more: Any) -> dict[str, Any]:
    answer = await asked(socket, type="subscribe", topics=list(topics or EVERYBODYS), **more)
    assert answer["type"] == "subscribed", answer
    return answer


def progress(owner: str, subject: str = "task_1", part: float = 0.5, **data: Any) -> Event:
    data = {"progress": part, "phase": "cognate", "metrics": {"loss": 1.5}} | data
    return Event(kind="training.progress", subject=subject, owner=owner, at=NOON, data=data)


async def owner_of(core: Core, headers: dict[str, str]) -> str:
    return (await core.identity.authenticate(token_of(headers))).owner


def token_of(headers: dict[str, str]) -> str:
    return headers["Authorization"].removeprefix("Bearer ")


class Rude:
    """A client of the bare protocol: it reads, answers and waits only where it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.protocol = ClientProtocol(parse_uri("ws://village/ws"))

    @classmethod
    async def join(cls, path: str, headers: dict[str, str]) -> "Rude":
        rude = cls(*await asyncio.open_unix_connection(path))
        request = rude.protocol.connect()
        for name, value in headers.items():
            request.headers[name] = value
        rude.protocol.send_request(request)
        rude.flush()
        rude.protocol.receive_data(await asyncio.wait_for(rude.reader.readuntil(b"\r\n\r\n"), 5))
        return rude

    def flush(self) -> None:
        for part in self.protocol.data_to_send():
            self.writer.write(part)

    def say(self, **message: Any) -> None:
        self.protocol.send_text(json.dumps(message).encode())
        self.flush()

    async def read(self) -> list[Frame]:
        """The next frames. Nothing is answered, pings neither. [] once the connection is gone."""
        data = await asyncio.wait_for(self.reader.read(65536), 5)
        self.protocol.receive_data(data) if data else self.protocol.receive_eof()
        return [event for event in self.protocol.events_received() if isinstance(event, Frame)]

    async def gone(self) -> bool:
        """Read until the server drops the connection."""
        try:
            while await asyncio.wait_for(self.reader.read(65536), 5):
                pass
        except ConnectionError:
            pass
        return True
