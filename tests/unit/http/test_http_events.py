"""`GET /v1/events`: the event stream as Server-Sent Events, over a real uvicorn, and through HAProxy."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from eventually import eventually
from socket_harness import joined, owner_of, progress, said, serving, subscribed, token_of

from cluster import front
from cluster.clock import utc_now
from cluster.events.model import START, Event
from cluster.settings import Settings
from serve_apps.core import Core
from serve_apps.gateway import Gateway
from serve_apps.kit import connections, outbox


@dataclass
class Stream:
    """The lines of an answer, read as a browser reads them."""

    response: httpx.Response
    lines: AsyncIterator[str] = field(init=False)
    last: str = ""
    beats: int = 0

    def __post_init__(self) -> None:
        self.lines = self.response.aiter_lines()

    async def block(self) -> dict[str, str]:
        """The fields up to the next empty line. StopAsyncIteration at the end."""
        fields: dict[str, str] = {}
        while line := await asyncio.wait_for(anext(self.lines), 5):
            name, _, value = line.partition(": ")
            self.beats += line == ":"
            fields[name] = value
        self.last = fields.get("id", self.last)
        return fields

    async def event(self) -> dict[str, Any]:
        """The next event's data, under `type` what the stream calls it."""
        while "data" not in (fields := await self.block()):
            pass
        data = json.loads(fields["data"])
        assert data["type"] == fields["event"]
        return data


@pytest.fixture
async def path(gateway: Gateway, tmp_path: Path) -> AsyncIterator[str]:
    async with serving(gateway, str(tmp_path / "g.sock")):
        yield str(tmp_path / "g.sock")


def browser(path: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=path), base_url="http://village", timeout=10)


@asynccontextmanager
async def following(path: str, headers: dict[str, str], **query: Any) -> AsyncIterator[Stream]:
    async with browser(path) as http, http.stream("GET", "/v1/events", headers=headers, params=query) as response:
        assert response.status_code == 200, await response.aread()
        stream = Stream(response)
        assert (await stream.block()).keys() == {"retry", "id"}
        yield stream


def ended(owner: str, subject: str) -> Event:
    return progress(owner, subject).model_copy(update={"kind": "task.completed", "data": {"status": "COMPLETED"}})


async def test_events_come_as_they_do_on_the_socket(path: str, core: Core, admin):
    async with following(path, admin, topics="training_progress") as stream, joined(path, admin) as socket:
        assert stream.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.response.headers["cache-control"] == "no-cache, no-transform"
        await subscribed(socket)
        event_id = await core.store.publish(progress("user_x"))
        assert await stream.event() == await said(socket)
        assert stream.last == event_id


async def test_one_hears_ones_own_and_what_the_filters_leave(path: str, core: Core, user):
    ann = await user("ann")
    hers = await owner_of(core, ann)
    async with following(path, ann, task_id=["task_a", "task_b"]) as stream:
        for event in (
            ended("user_x", "task_a"),
            ended(hers, "task_c"),
            progress(hers, "task_b"),
            ended(hers, "task_a"),
        ):
            await core.store.publish(event)
        assert [(await stream.event())["task_id"] for _ in range(2)] == ["task_b", "task_a"]


async def test_without_topics_one_gets_those_that_one_may(path: str, core: Core, user):
    ann = await user("ann", frozenset({"tasks:read"}))
    hers = await owner_of(core, ann)
    async with following(path, ann) as stream:
        await core.store.publish(progress(hers, "task_run"))
        await core.store.publish(ended(hers, "task_a"))
        assert (await stream.event())["task_id"] == "task_a"


async def test_a_browser_that_comes_back_misses_nothing(path: str, core: Core, admin):
    async with following(path, admin) as stream:
        begin = stream.last
    for part in (0.1, 0.2):
        await core.store.publish(progress("user_x", part=part))
    async with following(path, admin | {"Last-Event-ID": begin}, last_event_id="evt_1-0") as stream:
        assert [(await stream.event())["progress"] for _ in range(2)] == [0.1, 0.2]
    async with following(path, admin, last_event_id=stream.last) as stream:
        await core.store.publish(progress("user_x", part=0.3))
        assert (await stream.event())["progress"] == 0.3


async def test_a_gap_is_said(path: str, core: Core, admin):
    first = await core.store.publish(progress("user_x", part=0.1))
    last = await core.store.publish(progress("user_x", part=0.2))
    await core.store._redis.xtrim("{village}:events", minid=last.removeprefix("evt_"), approximate=False)
    async with following(path, admin, last_event_id=first) as stream:
        assert (await stream.event())["type"] == "gap"
        assert (await stream.event())["progress"] == 0.2
    async with following(path, admin, last_event_id=START) as stream:
        assert (await stream.event())["progress"] == 0.2


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"topics": "weather"}, "topics"), ({"task": "task_1"}, "task"),
        ({"last_event_id": "yesterday"}, "last_event_id"),
        ({"last_event_id": "evt_1-99999999999999999999"}, "last_event_id"), ({"token": "x"}, "token"),
        ({"phase": "x" * 300}, "filters.phase"),
    ],
)  # fmt: skip
async def test_what_is_not_understood_is_not_guessed(client: httpx.AsyncClient, admin, query, field: str):
    answer = await client.get("/v1/events", params=query, headers=admin)
    assert (answer.status_code, answer.json()["details"]["field"]) == (400, field)


async def test_it_needs_a_credential_and_each_topic_its_scope(client: httpx.AsyncClient, user):
    assert (await client.get("/v1/events")).status_code == 401
    ann = await user("ann", frozenset({"tasks:read"}))
    refused = await client.get("/v1/events", params={"topics": "task_events,agent_messages"}, headers=ann)
    assert (refused.status_code, refused.json()["error_code"]) == (403, "INSUFFICIENT_PERMISSIONS")
    nobody = await user("nobody", frozenset({"chat:write"}))
    assert (await client.get("/v1/events", headers=nobody)).status_code == 403
    in_url = await client.get("/v1/events", params={"token": token_of(ann)})
    assert in_url.status_code == 401, "a credential does not stand in the URL of a request that may have headers"


async def test_an_idle_stream_gives_signs_of_life(path: str, admin, monkeypatch):
    monkeypatch.setattr(connections, "LOOK_AGAIN_SECONDS", 0.02)
    async with following(path, admin) as stream:
        await stream.block()
        assert stream.beats == 1


async def test_a_stream_does_not_outlive_its_credential(path: str, core: Core, user):
    async with following(path, await user("ann")) as stream:
        core.identity.clock = lambda: utc_now() + timedelta(days=1)
        await core.connections.check()
        assert (await stream.event())["code"] == 1008
        with pytest.raises(StopAsyncIteration):
            await stream.block()


async def test_who_reads_nothing_is_dropped(path: str, core: Core, admin, monkeypatch):
    monkeypatch.setattr(outbox, "SEND_SECONDS", 0.2)
    async with following(path, admin):
        for n in range(600):
            await core.store.publish(progress("user_x", part=n / 1000, metrics={"note": "x" * 8000}))
        await eventually(lambda: not core.connections)


async def test_who_leaves_is_forgotten(path: str, core: Core, admin):
    async with following(path, admin):
        assert len(core.connections) == 1
    await eventually(lambda: not core.connections and core.hub._reader is None)


async def test_a_replica_that_ends_ends_its_streams(gateway: Gateway, core: Core, admin, tmp_path: Path):
    async with (
        serving(gateway, str(tmp_path / "x.sock")) as server,
        following(str(tmp_path / "x.sock"), admin) as stream,
    ):
        begun = asyncio.get_running_loop().time()
        server.should_exit = True
        assert (await stream.event())["code"] == 1001
        with pytest.raises(StopAsyncIteration):
            await stream.block()
    assert asyncio.get_running_loop().time() - begun < 3, "the server waits 5 s for a stream that does not end"


async def test_each_event_passes_the_front_door_at_once(
    gateway: Gateway, core: Core, admin, tmp_path: Path, unused_tcp_port_factory
):
    ports = {"port": unused_tcp_port_factory(), "farm_port": unused_tcp_port_factory()}
    settings = Settings(home=tmp_path, **ports)
    settings.run_dir.mkdir(parents=True)
    async with serving(gateway, str(front.socket_path(settings, "gateway", 0))):
        door = subprocess.Popen(front.command(settings), stderr=subprocess.DEVNULL)  # noqa: ASYNC220
        try:
            async with (
                httpx.AsyncClient(base_url=settings.url, timeout=10, headers=admin) as http,
                AsyncExitStack() as on,
            ):

                async def opened() -> httpx.Response | None:
                    # Until its first checks the door takes replicas for there that are not, and says 503.
                    with suppress(httpx.TransportError):
                        response = await on.enter_async_context(http.stream("GET", "/v1/events"))
                        return response if response.status_code == 200 else None

                stream = Stream(await eventually(opened, within=10))
                await stream.block()
                for part in (0.1, 0.2, 0.3):
                    await core.store.publish(progress("user_x", part=part))
                    assert (await stream.event())["progress"] == part
        finally:
            door.kill()
            door.wait()
