"""A gateway with a farm, its keeper, and workers that come over real WebSockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import numpy as np
from safetensors.numpy import save
from websockets.asyncio.client import ClientConnection, unix_connect

from cluster.farm.keeper import keep_farm
from cluster.farm.service import Farm
from cluster.store import Store
from cluster.trust.service import Trust
from serve_apps.core import Core
from serve_apps.dialects.aifarm.desk import Desk

TASKS = "/api/tasks"
ROOMY = {"cpu": {"cores": 8, "usage": 45.2}, "ram": {"total": 16384, "used": 8192}, "gpu": []}
SYSTEM = {"cpu_usage": 45.2, "ram_usage": 60.5, "gpu_usage": 0.0}


def install(core: Core, **settings: Any) -> None:
    """Give the core a farm."""
    chosen = core.settings.model_copy(update={"farm_lease_seconds": 30.0} | settings)
    core.farm = Farm(core.store, Trust(core.store), chosen)
    core.desk = Desk(core.hub, core.farm)


@asynccontextmanager
async def kept(core: Core, **settings: Any) -> AsyncIterator[None]:
    """A keeper runs."""
    chosen = core.settings.model_copy(update={"farm_lease_seconds": 30.0} | settings)
    store = Store(core.store.url)
    running = asyncio.create_task(keep_farm(store, chosen))
    try:
        yield
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await store.close()


class Worker:
    """A farm client."""

    def __init__(self, socket: ClientConnection, client_id: str) -> None:
        self.socket, self.client_id = socket, client_id

    async def say(self, kind: str, **fields: Any) -> None:
        told = {"type": kind, "client_id": self.client_id, "timestamp": "2024-11-04T12:00:00Z"}
        await self.socket.send(json.dumps(told | fields))

    async def heard(self, kind: str = "", within: float = 5) -> dict[str, Any]:
        """The next message, of this kind if one is named."""
        async with asyncio.timeout(within):
            while True:
                message = json.loads(await self.socket.recv())
                if kind in ("", message["type"]):
                    return message

    async def silent(self, seconds: float = 0.2) -> bool:
        """Whether nothing comes for so long."""
        try:
            raise AssertionError(await self.heard(within=seconds))
        except TimeoutError:
            return True

    async def given(self) -> dict[str, Any]:
        """Ask for a task; its data."""
        await self.say("task_request")
        return (await self.heard("task"))["data"]

    async def done(self, task_id: str, status: str = "completed", **fields: Any) -> dict[str, Any]:
        await self.say("task_result", task_id=task_id, status=status, **fields)
        return await self.heard("task_result_ack")


@asynccontextmanager
async def worker(
    path: str, headers: dict[str, str], client_id: str = "one", resources: dict[str, Any] | None = ROOMY
) -> AsyncIterator[Worker]:
    """A connected client that has told what it has."""
    async with unix_connect(
        path, "ws://village/farm/ws", additional_headers=headers | {"Client-ID": client_id}
    ) as socket:
        made = Worker(socket, client_id)
        if resources is not None:
            await made.say("heartbeat", system_info=SYSTEM, resources=resources)
        yield made


def weights(value: float, steps: int = 3, size: int = 4) -> dict[str, np.ndarray]:
    return {"w": np.full((2, size), value, np.float32), "steps": np.array([steps], np.int64)}


async def upload(
    client: httpx.AsyncClient,
    headers: dict[str, str],
    data: dict[str, Any],
    client_id: str,
    content: dict[str, np.ndarray],
) -> httpx.Response:
    """Upload what a rank was asked for."""
    return await client.put(
        data["config"]["upload"], content=save(content),
        headers=headers | {"Client-ID": client_id, "content-type": "application/octet-stream"},
    )  # fmt: skip


async def ordered(client: httpx.AsyncClient, headers: dict[str, str], **fields: Any) -> str:
    """A new task's id."""
    answer = await client.post(TASKS, json={"type": "training"} | fields, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]
