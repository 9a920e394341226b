"""`/ws` over a real uvicorn on a Unix socket: what a client may ask, and what it gets."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from eventually import eventually
from socket_harness import NOON, asked, joined, owner_of, progress, said, serving, subscribed, token_of
from websockets.asyncio.client import unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cluster.clock import utc_now
from cluster.events.model import START
from cluster.origin import Origin, within
from serve_apps.core import Core
from serve_apps.gateway import Gateway
from serve_apps.kit import connections


@pytest.fixture
async def path(gateway: Gateway, tmp_path: Path) -> AsyncIterator[str]:
    """Where the gateway listens."""
    socket = str(tmp_path / "g.sock")
    async with serving(gateway, socket):
        yield socket


async def closed_with(socket) -> int:
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            await asyncio.wait_for(socket.recv(), 5)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


async def test_ping_and_status_need_nobody_and_topics_do(path: str):
    async with joined(path) as socket:
        assert (await asked(socket, type="ping"))["type"] == "pong"
        status = await asked(socket, type="get_status", components=["agents", "fog"])
        assert set(status["components"]) == {"agents", "fog"}
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


@pytest.mark.parametrize(("url", "status"), [("/farm/ws", 400), ("/chat/ws/a/b", 501), ("/nothing", 404)])
async def test_other_sockets_answer_as_http_would(path: str, admin, url: str, status: int):
    with pytest.raises(InvalidStatus) as refused:
        async with unix_connect(path, f"ws://village{url}", additional_headers=admin):
            pass
    assert refused.value.response.status_code == status


async def test_progress_arrives_for_its_owner_and_for_nobody_else(path: str, core: Core, user):
    ann, bob = await user("ann"), await user("bob")
    async with joined(path, query=f"?token={token_of(ann)}") as hers, joined(path, bob) as his:
        for socket in (hers, his):
            await subscribed(socket)
        await core.store.publish(progress(await owner_of(core, ann)))
        await core.store.publish(progress(await owner_of(core, bob), "task_2"))
        mine, other = await said(hers), await said(his)
    assert (mine["task_id"], other["task_id"]) == ("task_1", "task_2")
    assert mine["type"] == "training_progress" and mine["metrics"] == {"loss": 1.5}
    assert mine["event_id"].startswith("evt_")


async def test_neither_a_filter_nor_a_resume_shows_anothers_events(path: str, core: Core, user):
    ann, bob = await user("ann"), await user("bob")
    hers, his = await owner_of(core, ann), await owner_of(core, bob)
    await core.store.publish(progress(hers, "task_before"))
    async with joined(path, bob) as socket:
        await subscribed(socket, last_event_id=START)
        await subscribed(socket, filters={"user_id": hers}, last_event_id=START)
        await core.store.publish(progress(hers, "task_hers"))
        await subscribed(socket, filters={"user_id": [hers, his]})
        await core.store.publish(progress(hers, "task_hers"))
        await core.store.publish(progress(his, "task_his"))
        assert (await said(socket))["task_id"] == "task_his"


async def test_an_admin_sees_all_and_may_name_one(path: str, core: Core, admin, user):
    hers = await owner_of(core, await user("ann"))
    async with joined(path, admin) as all_of_it, joined(path, admin) as one:
        await subscribed(all_of_it)
        await subscribed(one, filters={"user_id": hers})
        for owner in ("user_x", hers):
            await core.store.publish(progress(owner))
        assert [(await said(all_of_it))["user_id"] for _ in range(2)] == ["user_x", hers]
        assert (await said(one))["user_id"] == hers


async def test_a_topic_needs_its_scope(path: str, user):
    headers = await user("ann", frozenset({"tasks:read"}))
    async with joined(path, headers) as socket:
        refused = await asked(socket, type="subscribe", topics=["task_events", "training_progress"])
        assert refused["error_code"] == "INSUFFICIENT_PERMISSIONS"
        assert refused["details"] == {"required_scope": "models:read", "topic": "training_progress"}
        await subscribed(socket, "task_events")


async def test_what_an_event_keeps_for_the_village_is_not_told(path: str, core: Core, admin):
    async with joined(path, admin) as socket:
        await subscribed(socket)
        with within(Origin(principal_id="user_x", address="192.0.2.7", request_id="req_secret")):
            await core.store.publish(progress("user_x", internal="req_secret"))
        told = json.dumps(await said(socket))
    assert "192.0.2.7" not in told and "req_secret" not in told and "origin" not in told


async def test_what_happened_while_one_was_away_is_told_on_return(path: str, core: Core, admin):
    async with joined(path, admin) as socket:
        await subscribed(socket)
        await core.store.publish(progress("user_x", part=0.1))
        last = (await said(socket))["event_id"]
    for part in (0.2, 0.3):
        await core.store.publish(progress("user_x", part=part))
    async with joined(path, admin) as socket:
        await subscribed(socket, last_event_id=last)
        await core.store.publish(progress("user_x", part=0.4))
        assert [(await said(socket))["progress"] for _ in range(3)] == [0.2, 0.3, 0.4]


async def test_the_greeting_says_after_what_nothing_is_missed(path: str, core: Core, admin):
    await core.store.publish(progress("user_x", part=0.1))
    async with unix_connect(path, "ws://village/ws", additional_headers=admin) as socket:
        last = (await said(socket))["last_event_id"]
        await core.store.publish(progress("user_x", part=0.2))
        assert (await subscribed(socket, last_event_id=last))["last_event_id"] == last
        assert (await said(socket))["progress"] == 0.2


async def test_a_change_of_topics_misses_nothing_and_repeats_nothing(path: str, core: Core, admin):
    seen, both = [], ["training_progress", "task_events"]
    async with joined(path, admin) as socket:
        await subscribed(socket)
        for n in range(12):
            await core.store.publish(progress("user_x", part=n / 100))
            await socket.send(json.dumps({"type": "subscribe", "topics": both[: n % 2 + 1]}))
        while len(seen) < 12:
            told = await said(socket)
            if told["type"] == "training_progress":
                seen.append(told["progress"])
    assert seen == [n / 100 for n in range(12)]


async def test_a_resume_from_what_is_no_longer_kept_says_so(path: str, core: Core, admin):
    first = await core.store.publish(progress("user_x", part=0.1))
    last = await core.store.publish(progress("user_x", part=0.2))
    await core.store._redis.xtrim("{village}:events", minid=last.removeprefix("evt_"), approximate=False)
    async with joined(path, admin) as socket:
        await subscribed(socket, last_event_id=first)
        assert (await said(socket))["type"] == "gap"
        assert (await said(socket))["progress"] == 0.2
        await subscribed(socket, last_event_id=START)
        assert (await said(socket))["progress"] == 0.2, "all that is kept was asked for: nothing is missing"


async def test_an_id_that_the_stream_never_gave_says_so_and_goes_on(path: str, core: Core, admin):
    async with joined(path, admin) as socket:
        await subscribed(socket, last_event_id="evt_9999999999999-0")
        assert (await said(socket))["type"] == "gap"
        await core.store.publish(progress("user_x", part=0.3))
        assert (await said(socket))["progress"] == 0.3


async def test_after_unsubscribing_a_topic_is_silent(path: str, core: Core, admin):
    async with joined(path, admin) as socket:
        await subscribed(socket, "training_progress", "task_events")
        left = await asked(socket, type="unsubscribe", topics=["training_progress"])
        assert (left["type"], left["topics"]) == ("unsubscribed", ["task_events"])
        await core.store.publish(progress("user_x"))
        assert (await asked(socket, type="unsubscribe"))["topics"] == []
        assert (await asked(socket, type="ping"))["type"] == "pong"
        assert core.hub._reader is None, "nobody listens, so nobody reads"


async def test_one_reader_serves_every_socket(path: str, core: Core, admin):
    async with joined(path, admin) as one, joined(path, admin) as two:
        for socket in (one, two):
            await subscribed(socket)
        await core.store.publish(progress("user_x"))
        assert (await said(one))["event_id"] == (await said(two))["event_id"]

        async def blocked() -> int:
            return sum("b" in client["flags"] for client in await core.store._redis.client_list())

        assert await eventually(blocked) == 1, "one blocked reader"


async def test_a_token_may_come_as_a_message(path: str, core: Core, user):
    headers = await user("ann")
    async with joined(path) as socket:
        told = await asked(socket, type="authenticate", token=token_of(headers))
        owner = await owner_of(core, headers)
        assert (told["type"], told["user_id"]) == ("authenticated", owner)
        await subscribed(socket)
        await core.store.publish(progress(owner))
        assert (await said(socket))["user_id"] == owner


async def test_a_connection_goes_on_with_a_new_token_of_the_same_user(path: str, core: Core, user):
    old = await user("ann")
    new = (await core.identity.token("ann", "correct horse")).access_token
    async with joined(path, old) as socket:
        await subscribed(socket)
        await asked(socket, type="authenticate", token=new)
        await core.identity.revoke(token_of(old))
        await core.connections.check()
        await core.store.publish(progress(await core_owner(core, new)))
        assert (await said(socket))["type"] == "training_progress"


async def core_owner(core: Core, token: str) -> str:
    return (await core.identity.authenticate(token)).owner


async def test_a_connection_stays_with_its_owner(path: str, user):
    ann, bob = await user("ann"), await user("bob")
    async with joined(path, ann) as socket:
        refused = await asked(socket, type="authenticate", token=token_of(bob))
        assert refused["error_code"] == "INSUFFICIENT_PERMISSIONS"


async def test_three_bad_tokens_close_the_connection(path: str):
    async with joined(path) as socket:
        for _ in range(3):
            refused = await asked(socket, type="authenticate", token="forged.forged.forged")
            assert refused["error_code"] == "AUTHENTICATION_REQUIRED"
        assert await closed_with(socket) == 1008


async def test_a_socket_does_not_outlive_its_user(path: str, core: Core, user, monkeypatch):
    monkeypatch.setattr(connections, "LOOK_AGAIN_SECONDS", 0.05)
    headers = await user("ann")
    async with joined(path, headers) as socket:
        await core.identity.disable("ann")
        assert await closed_with(socket) == 1008


async def test_a_socket_does_not_outlive_its_token(path: str, core: Core, user):
    async with joined(path, await user("ann")) as socket:
        core.identity.clock = lambda: utc_now() + timedelta(days=1)
        await core.connections.check()
        assert await closed_with(socket) == 1008


async def test_a_socket_does_not_outlive_its_key(path: str, core: Core, admin):
    who = await core.identity.authenticate(token_of(admin))
    key, secret = await core.identity.create_key(who, "acme", "k", frozenset({"read"}))
    async with joined(path, {"X-API-Key": secret}) as socket:
        await subscribed(socket)
        await core.identity.revoke_key(who, key.key_id)
        await core.connections.check()
        assert await closed_with(socket) == 1008


async def test_a_socket_does_not_keep_the_rights_that_its_user_had(path: str, core: Core, admin, user):
    headers = await user("ann")
    async with joined(path, headers) as socket:
        await subscribed(socket)
        root = await core.identity.authenticate(token_of(admin))
        await core.identity.change_user(root, await owner_of(core, headers), scopes=frozenset({"chat:write"}))
        await core.connections.check()
        assert await closed_with(socket) == 1008


async def test_a_hundred_messages_a_minute_and_who_goes_on_is_closed(path: str, core: Core):
    core.clock = lambda: NOON
    async with joined(path) as socket:
        for _ in range(100):
            assert (await asked(socket, type="ping"))["type"] == "pong"
        told = await asked(socket, type="ping")
        assert told["error_code"] == "RATE_LIMIT_EXCEEDED"
        assert told["details"] == {
            "limit": 100, "window": "1 minute", "reset_at": "2026-01-01T12:01:00.000Z", "suggested_retry_after": 60,
        }  # fmt: skip
        core.clock = lambda: NOON + timedelta(minutes=1)
        assert (await asked(socket, type="ping"))["type"] == "pong"
        for _ in range(99 + 20):
            await asked(socket, type="ping")
        await socket.send('{"type": "ping"}')
        assert await closed_with(socket) == 1008


@pytest.mark.parametrize(("message", "code"), [("x" * 20_000, 1009), (b"{}", 1003)])
async def test_a_message_is_text_of_a_sane_size(path: str, message, code: int):
    async with joined(path) as socket:
        await socket.send(message)
        assert await closed_with(socket) == code


async def test_a_text_is_utf8(path: str):
    async with joined(path) as socket:
        await socket.send(b'{"type": "\xff"}', text=True)
        assert await closed_with(socket) == 1007


async def test_one_caller_has_so_many_connections(path: str, core: Core, user, monkeypatch):
    headers = await user("ann")
    core.connections.limits = core.connections.limits.model_copy(update={"per_caller": 2})
    async with joined(path, headers), joined(path, headers):
        with pytest.raises(InvalidStatus) as refused:
            async with joined(path, headers):
                pass
        assert refused.value.response.status_code == 429
        assert b"RATE_LIMIT_EXCEEDED" in (refused.value.response.body or b"")
        async with joined(path) as stranger:
            assert (await asked(stranger, type="authenticate", token=token_of(headers)))["type"] == "error"
    await eventually(lambda: not core.connections)
    async with joined(path, headers):
        pass


async def test_who_signs_in_on_the_socket_no_longer_counts_for_the_address(path: str, core: Core, user):
    headers = await user("ann")
    core.connections.limits = core.connections.limits.model_copy(update={"per_caller": 1})
    async with joined(path) as first:
        await asked(first, type="authenticate", token=token_of(headers))
        async with joined(path):
            pass


async def test_a_full_process_says_come_back(path: str, core: Core):
    core.connections.limits = core.connections.limits.model_copy(update={"per_process": 1})
    async with joined(path):
        with pytest.raises(InvalidStatus) as refused:
            async with joined(path):
                pass
        response = refused.value.response
        assert response.status_code == 503 and response.headers["Retry-After"] == "2"


async def test_open_sockets_are_counted(path: str, core: Core):
    async with joined(path), joined(path):
        assert core.metrics.sockets_now()[0] == 2
    await eventually(lambda: core.metrics.sockets_now()[0] == 0)
    assert core.metrics.sockets_now() == (0, 2)


async def test_a_replica_that_ends_says_goodbye(gateway: Gateway, core: Core, admin, tmp_path: Path):
    path = str(tmp_path / "x.sock")
    async with serving(gateway, path) as server, joined(path, admin) as socket, joined(path) as idle:
        await subscribed(socket)
        server.should_exit = True
        assert (await closed_with(socket), await closed_with(idle)) == (1001, 1001)
