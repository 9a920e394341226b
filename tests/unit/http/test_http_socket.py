"""`/ws` over a real uvicorn on a Unix socket."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cluster.events.model import Event
from cluster.identity.model import Principal
from serve_apps.core import Core
from serve_apps.dialects.aivillage import routes_ws
from serve_apps.dialects.aivillage.socket import Conversation
from serve_apps.gateway import Gateway
from serve_apps.kit import hub

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
async def path(gateway: Gateway, tmp_path: Path) -> AsyncIterator[str]:
    """Where the gateway listens."""
    socket = str(tmp_path / "g.sock")
    config = uvicorn.Config(gateway, uds=socket, lifespan="off", ws="websockets-sansio", log_level="error")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(0.01)
    yield socket
    server.should_exit = True
    await serving


@asynccontextmanager
async def joined(path: str, headers: dict[str, str] | None = None, query: str = "") -> AsyncIterator[ClientConnection]:
    async with unix_connect(path, f"ws://village/ws{query}", additional_headers=headers) as socket:
        assert (await said(socket))["type"] == "connection_established"
        yield socket


async def said(socket: ClientConnection) -> dict[str, Any]:
    return json.loads(await asyncio.wait_for(socket.recv(), 5))


async def asked(socket: ClientConnection, **message: Any) -> dict[str, Any]:
    await socket.send(json.dumps(message))
    return await said(socket)


def progress(owner: str, subject: str = "task_1", part: float = 0.5, **data: Any) -> Event:
    data = {"progress": part, "phase": "cognate", "metrics": {"loss": 1.5}} | data
    return Event(kind="training.progress", subject=subject, owner=owner, at=NOON, data=data)


async def owner_of(core: Core, headers: dict[str, str]) -> str:
    return (await core.identity.authenticate_bearer(headers["Authorization"].removeprefix("Bearer "))).owner


async def test_ping_and_status_need_nobody_and_topics_do(path: str):
    async with joined(path) as socket:
        assert (await asked(socket, type="ping"))["type"] == "pong"
        assert set((await asked(socket, type="get_status", components=["agents", "fog"]))["components"]) == {
            "agents",
            "fog",
        }
        refused = await asked(socket, type="subscribe", topics=["training_progress"])
        assert refused["error_code"] == "AUTHENTICATION_REQUIRED"
        await socket.send("{nonsense")
        assert (await said(socket))["type"] == "error"


async def test_a_bad_token_is_refused_at_the_handshake(path: str):
    with pytest.raises(InvalidStatus) as refused:
        async with joined(path, {"Authorization": "Bearer forged"}):
            pass
    response = refused.value.response
    assert response.status_code == 401 and b"AUTHENTICATION_REQUIRED" in (response.body or b"")


@pytest.mark.parametrize(("url", "status"), [("/farm/ws", 501), ("/chat/ws/a/b", 501), ("/nothing", 404)])
async def test_other_sockets_answer_as_http_would(path: str, admin, url: str, status: int):
    with pytest.raises(InvalidStatus) as refused:
        async with unix_connect(path, f"ws://village{url}", additional_headers=admin):
            pass
    assert refused.value.response.status_code == status


async def test_an_unknown_topic_names_those_that_exist(path: str, admin):
    async with joined(path, admin) as socket:
        answer = await asked(socket, type="subscribe", topics=["weather"])
        assert answer["type"] == "error" and "training_progress" in answer["details"]["allowed_values"]


async def test_progress_arrives_for_its_owner_and_for_nobody_else(path: str, core: Core, user):
    ann, bob = await user("ann"), await user("bob")
    token = ann["Authorization"].removeprefix("Bearer ")
    async with joined(path, query=f"?token={token}") as hers, joined(path, bob) as his:
        for socket in (hers, his):
            assert (await asked(socket, type="subscribe", topics=["training_progress"]))["type"] == "subscribed"
        await core.store.publish(progress(await owner_of(core, ann)))
        await core.store.publish(progress(await owner_of(core, bob), "task_2"))
        mine, other = await said(hers), await said(his)
    assert (mine["task_id"], other["task_id"]) == ("task_1", "task_2")
    assert (
        mine["type"] == "training_progress" and mine["metrics"]["loss"] == 1.5 and mine["event_id"].startswith("evt_")
    )


async def test_what_happened_while_one_was_away_is_told_on_return(path: str, core: Core, admin):
    async with joined(path, admin) as socket:
        await asked(socket, type="subscribe", topics=["training_progress"])
        await core.store.publish(progress("user_x", part=0.1))
        last = (await said(socket))["event_id"]
    for part in (0.2, 0.3):
        await core.store.publish(progress("user_x", part=part))
    async with joined(path, admin) as socket:
        await asked(socket, type="subscribe", topics=["training_progress"], last_event_id=last)
        await core.store.publish(progress("user_x", part=0.4))
        assert [(await said(socket))["progress"] for _ in range(3)] == [0.2, 0.3, 0.4]


async def test_one_reader_serves_every_socket(path: str, core: Core, admin):
    async with joined(path, admin) as one, joined(path, admin) as two:
        for socket in (one, two):
            await asked(socket, type="subscribe", topics=["training_progress"])
        await core.store.publish(progress("user_x"))
        assert (await said(one))["event_id"] == (await said(two))["event_id"]
        clients = await core.store._redis.client_list()
        assert sum("b" in client["flags"] for client in clients) == 1, "one blocked reader"


async def test_a_listener_that_falls_behind_is_told_to_come_back(core: Core, monkeypatch):
    monkeypatch.setattr(hub, "ROOM", 3)
    begin = await core.store.last_event_id()
    events = core.hub.listen(lambda _: True, begin)
    await core.store.publish(progress("user_x"))
    await anext(events)
    for _ in range(20):
        await core.store.publish(progress("user_x"))
    with pytest.raises(hub.TooSlow):
        async for _ in events:
            await asyncio.sleep(0.02)


async def test_a_socket_does_not_outlive_its_user(path: str, core: Core, user, monkeypatch):
    monkeypatch.setattr(routes_ws, "LOOK_AGAIN_SECONDS", 0.05)
    headers = await user("ann")
    async with joined(path, headers) as socket:
        await core.identity.disable("ann")
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(socket.recv(), 5)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008


async def test_open_sockets_are_counted(path: str, core: Core):
    async with joined(path), joined(path):
        assert core.metrics.sockets_now()[0] == 2
    for _ in range(100):
        if core.metrics.sockets_now()[0] == 0:
            break
        await asyncio.sleep(0.02)
    assert core.metrics.sockets_now() == (0, 2)


def talk(**fields: Any) -> Conversation:
    who = Principal(principal_id="user_1", owner="user_1", username="ann", **fields)
    conversation = Conversation(who, "conn_1")
    assert (
        conversation.receive('{"type": "subscribe", "topics": ["training_progress"]}', {}, NOON)["type"] == "subscribed"
    )
    return conversation


def test_a_filter_holds_back_only_what_has_the_field():
    conversation = talk()
    conversation.filters = {"user_id": "user_1", "priority": "high"}
    assert conversation.wants(progress("user_1"))
    assert not conversation.wants(progress("user_1", priority="low"))


def test_the_end_of_a_run_has_full_progress_and_its_last_metrics():
    conversation = talk()
    conversation.render(progress("user_1", part=0.9))
    end = Event(kind="training.completed", subject="task_1", owner="user_1", at=NOON, data={"phase": "cognate"})
    message = conversation.render(end)
    assert (message["progress"], message["metrics"], message["status"]) == (1.0, {"loss": 1.5}, "completed")
