import asyncio
import socket
from argparse import Namespace
from collections.abc import AsyncIterator

import pytest
import uvicorn
from http_harness import ADMIN, PASSWORD
from receiver import Receiver

from cluster.cli.client import Refused
from cluster.cli.main import parser
from cluster.settings import Settings
from serve_apps.core import Core
from serve_apps.gateway import Gateway


@pytest.fixture
async def settings(gateway: Gateway, core: Core) -> AsyncIterator[Settings]:
    """Of a gateway on a real port."""
    door = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(gateway, log_level="error", lifespan="off", ws="none"))
    serving = asyncio.create_task(server.serve([door]))
    port = door.getsockname()[1]
    yield core.settings.model_copy(update={"port": port, "admin_username": ADMIN, "admin_password": PASSWORD})
    server.should_exit = True
    await serving


async def test_webhooks_on_the_command_line(settings: Settings, capsys: pytest.CaptureFixture[str]):
    async def village(*words: str) -> tuple[int, str]:
        told: Namespace = parser().parse_args(["webhook", *words])
        status = await asyncio.to_thread(told.action, settings, told)
        return status, capsys.readouterr().out

    async with Receiver() as receiver:
        status, said = await village("add", receiver.url, "--event", "task.*", "chat.completed")
        webhook_id, secret = said.split()[0], said.split()[-1]
        assert status == 0 and webhook_id.startswith("wh_") and secret.startswith("whsec_")
        status, said = await village("list")
        assert all(word in said for word in (webhook_id, receiver.url, "task.*, chat.completed", "on"))
        assert secret not in said
        status, said = await village("test", webhook_id)
        assert status == 0 and "answered 200" in said and receiver.events == ["webhook.test"]
        receiver.answers(500)
        status, said = await village("test", webhook_id)
        assert status == 1 and "answered 500" in said
    assert (await village("remove", webhook_id))[0] == 0
    with pytest.raises(Refused, match="404"):
        await village("test", webhook_id)
