"""The agents of docs/tasks.md, run as they stand, against a gateway on a port of its own."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from eventually import eventually
from test_ains import Program, core, order, shop  # noqa: F401 - fixtures

from cluster.presence import Presence
from cluster.routing.router import Router
from serve_apps.core import Core
from serve_apps.gateway import Gateway
from serve_apps.listener import Server, configured

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "docs" / "examples"
PAGE = (ROOT / "docs" / "tasks.md").read_text()


@pytest.fixture
async def url(shop: Program, core: Core, gateway: Gateway) -> AsyncIterator[str]:  # noqa: F811
    await eventually(lambda: core.store.find(Presence, Router.NAME))
    door = socket.create_server(("127.0.0.1", 0))
    server = Server(configured(gateway, lifespan="off"))
    running = asyncio.create_task(server.serve(sockets=[door]))
    await eventually(lambda: server.started)
    yield f"http://127.0.0.1:{door.getsockname()[1]}"
    server.should_exit = True
    await running


@pytest.mark.parametrize("name", ["agent_push.py", "agent_pull.py"])
def test_the_page_shows_the_file_as_it_is(name: str):
    assert f"```python\n{(EXAMPLES / name).read_text()}```" in PAGE


@pytest.mark.parametrize("name", ["agent_push.py", "agent_pull.py"])
async def test_the_example_does_what_the_page_says(name: str, url: str, shop: Program):  # noqa: F811
    settings = os.environ | {"VILLAGE_URL": url, "TOKEN": shop.headers["X-API-Key"]}
    agent = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLES / name), env=settings, stdout=asyncio.subprocess.PIPE
    )
    assert agent.stdout is not None
    try:
        status, _, told = (await asyncio.wait_for(agent.stdout.readline(), 20)).decode().partition(" ")
        made = json.loads(told)
        assert status == "201" and made["delivery"] in name and made["tags"] == ["count:v1"]
        async with httpx.AsyncClient(base_url=url, headers=shop.headers) as client:

            async def asked(text: object) -> dict:
                body = order(capability_required="count:v1", input_data={"text": text}, max_retries=0)
                task_id = (await client.post("/ains/tasks", json=body)).json()["task_id"]
                return (await client.get(f"/ains/tasks/{task_id}?wait=15", timeout=20)).json()

            answers = await asyncio.gather(asked("three small words"), asked("two words"))
            assert [answer["result_data"] for answer in answers] == [{"words": 3}, {"words": 2}]
            assert "'int' object has no attribute 'split'" in (await asked(5))["error"]
            agent.send_signal(signal.SIGINT)
            await asyncio.wait_for(agent.wait(), 10)
            after = (await client.get(f"/ains/agents/{made['agent_id']}")).json()
            assert after["status"] == ("inactive" if name == "agent_push.py" else "active")
    finally:
        if agent.returncode is None:
            agent.kill()
            await agent.wait()
