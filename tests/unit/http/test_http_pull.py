"""Pull delivery over real HTTP: an agent behind a NAT asks, waits, and may vanish while it waits."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from eventually import eventually
from http_harness import ADMIN
from socket_harness import serving
from test_ains import TAG, Program, core, shop  # noqa: F401 - fixtures
from working_agent import registration

from cluster.presence import Presence
from cluster.routing.router import Router
from serve_apps.core import Core
from serve_apps.gateway import Gateway

NEXT = "/ains/agents/ada/tasks/next"


@pytest.fixture
async def puller(shop: Program, core: Core) -> Program:  # noqa: F811
    """An agent that pulls, and a router that listens."""
    body = registration("ada", "pull:", [TAG], max_concurrent_tasks=3)
    answer = await shop.ask("POST", "/ains/agents", body)
    assert answer.status_code == 201, answer.text
    assert answer.json()["delivery"] == "pull"
    await eventually(lambda: core.store.find(Presence, Router.NAME))
    return shop


@pytest.fixture
async def wire(puller: Program, gateway: Gateway, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client with connections of its own, which it may cut."""
    path = str(tmp_path / "gateway.sock")
    async with serving(gateway, path):
        transport = httpx.AsyncHTTPTransport(uds=path)
        async with httpx.AsyncClient(transport=transport, base_url="http://village", timeout=40) as http:
            http.headers.update(puller.headers)
            yield http


async def test_what_is_pulled_is_what_would_be_pushed(puller: Program):
    waiting = asyncio.create_task(puller.ask("GET", f"{NEXT}?wait=20"))
    task_id = await puller.submit(metadata={"m": 1}, timeout_seconds=60)
    answer = await asyncio.wait_for(waiting, 10)
    assert answer.status_code == 200, answer.text
    sent = answer.json()
    assert set(sent) == {
        "task_id", "attempt_id", "task_type", "capability_required", "input_data", "priority", "timeout_seconds",
        "deadline", "metadata", "task_token", "callback_url",
    }  # fmt: skip
    assert (sent["task_id"], sent["attempt_id"], sent["metadata"]) == (task_id, f"{task_id}.1", {"m": 1})
    done = await puller.client.post(
        f"/ains/tasks/{task_id}/result", json={"status": "COMPLETED", "result_data": {"sum": 3}},
        headers={"X-Task-Token": sent["task_token"]},
    )  # fmt: skip
    assert done.status_code == 200 and (await puller.task(task_id))["result_data"] == {"sum": 3}
    shown = (await puller.ask("GET", "/ains/agents/ada")).json()
    assert (shown["delivery"], shown["endpoint"]) == ("pull", "pull:") and shown["expires_at"]


async def test_nothing_is_a_204_and_several_come_as_tasks(puller: Program):
    nothing = await puller.ask("GET", f"{NEXT}?wait=0")
    assert (nothing.status_code, nothing.content) == (204, b"")
    ids = {await puller.submit() for _ in range(5)}
    got: list[dict[str, Any]] = []
    while len(got) < 3:
        got += (await puller.ask("GET", f"{NEXT}?wait=5&max=10")).json()["tasks"]
    assert len(got) == 3 and {task["task_id"] for task in got} < ids  # no more than it may hold
    assert (await puller.ask("GET", f"{NEXT}?wait=0&max=10")).status_code == 204
    for wrong in ("wait=61", "wait=-1", "max=0", "max=101"):
        assert (await puller.ask("GET", f"{NEXT}?{wrong}")).status_code == 400


async def test_an_agent_that_is_pushed_to_does_not_pull(puller: Program):
    await puller.agent("bob")
    assert (await puller.ask("GET", "/ains/agents/bob/tasks/next")).status_code == 409


async def test_in_production_an_agent_may_pull(puller: Program, core: Core):  # noqa: F811
    core.workers.https_only = True
    assert (await puller.ask("POST", "/ains/agents", registration("eve", "pull:", [TAG]))).status_code == 201
    plain = registration("bob", "http://x.example/", [TAG])
    assert (await puller.ask("POST", "/ains/agents", plain)).status_code == 400


async def test_who_hangs_up_while_it_waits_loses_no_task(puller: Program, core: Core, wire: httpx.AsyncClient):  # noqa: F811
    polls = core.waits.pulling
    waiting = asyncio.create_task(wire.get(f"{NEXT}?wait=30"))
    await eventually(lambda: "ada" in polls.desks)
    waiting.cancel()  # the connection is cut
    await eventually(lambda: not polls.desks)
    task_id = await puller.submit()
    answer = await wire.get(f"{NEXT}?wait=20")
    assert answer.json()["task_id"] == task_id and (await puller.task(task_id))["retry_count"] == 0


async def test_a_replica_that_ends_lets_its_polls_go(core: Core, wire: httpx.AsyncClient, gateway: Gateway):  # noqa: F811
    waiting = asyncio.create_task(wire.get(f"{NEXT}?wait=30"))
    await eventually(lambda: "ada" in core.waits.pulling.desks)
    await gateway.closing()
    assert (await asyncio.wait_for(waiting, 3)).status_code == 204


async def test_a_key_that_is_revoked_while_it_waits_gets_nothing(
    puller: Program, core: Core, wire: httpx.AsyncClient, admin, client  # noqa: F811
):  # fmt: skip
    waiting = asyncio.create_task(wire.get(f"{NEXT}?wait=30"))
    await eventually(lambda: "ada" in core.waits.pulling.desks)
    [key] = (await client.get("/ains/api-keys", headers=admin)).json()["keys"]
    assert (await client.delete(f"/ains/api-keys/{key['key_id']}", headers=admin)).status_code == 200
    await core.waits.connections.check()
    assert (await asyncio.wait_for(waiting, 3)).status_code == 204
    assert (await wire.get(f"{NEXT}?wait=0")).status_code == 401


async def test_an_admin_acts_for_any_agent(puller: Program, admin, client: httpx.AsyncClient):
    assert ADMIN and (await client.get(f"{NEXT}?wait=0", headers=admin)).status_code == 204
