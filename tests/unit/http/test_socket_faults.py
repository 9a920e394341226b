"""WebSockets when things go wrong: peers that are slow, silent or rude, a Redis that dies, several gateways."""

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from eventually import eventually
from http_harness import ADMIN, ADMIN_SCOPES, PASSWORD, QUICK, roomy
from restartable import Redis
from socket_harness import Rude, joined, progress, said, serving, subscribed
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from cluster.identity.passwords import Passwords
from cluster.identity.service import Identity
from cluster.limits.limiter import Limiter
from cluster.settings import Settings
from cluster.store import Store
from serve_apps.core import Core
from serve_apps.gateway import Gateway, build_gateway
from serve_apps.kit import outbox
from serve_apps.kit.hub import Hub
from serve_apps.kit.readiness import Readiness, reachable

LARGE = {"metrics": {"loss": 1.5, "note": "x" * 8000}}
MANY = 600  # of LARGE: more than the kernel's buffers and the outbox hold together


@pytest.fixture
async def path(gateway: Gateway, tmp_path: Path) -> AsyncIterator[str]:
    async with serving(gateway, str(tmp_path / "g.sock")):
        yield str(tmp_path / "g.sock")


async def test_who_falls_behind_is_told_where_and_misses_nothing(path: str, core: Core, admin):
    seen: list[float] = []
    async with joined(path, admin, max_queue=1) as slow:
        await subscribed(slow)
        for n in range(MANY):
            await core.store.publish(progress("user_x", part=n / 1000, **LARGE))
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                told = await said(slow)
                seen.append(told["progress"])
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1013
    assert closed.value.rcvd.reason.endswith(told["event_id"])
    assert 0 < len(seen) < MANY
    async with joined(path, admin) as again:
        await subscribed(again, last_event_id=told["event_id"])
        while len(seen) < MANY:
            seen.append((await said(again))["progress"])
    assert seen == [n / 1000 for n in range(MANY)]


async def test_one_who_reads_the_past_slowly_is_waited_for(path: str, core: Core, admin):
    for n in range(MANY):
        await core.store.publish(progress("user_x", part=n / 1000, **LARGE))
    async with joined(path, admin, max_queue=1) as slow:
        await subscribed(slow, last_event_id="evt_0-0")
        await asyncio.sleep(0.2)  # the gateway could send all of it meanwhile, if it did not wait
        seen = [(await said(slow))["progress"] for _ in range(MANY)]
    assert seen == [n / 1000 for n in range(MANY)]


async def test_who_takes_nothing_is_dropped_with_what_waits_for_him(
    gateway: Gateway, core: Core, admin, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(outbox, "SEND_SECONDS", 0.2)
    async with serving(gateway, str(tmp_path / "d.sock")) as server:
        rude = await Rude.join(str(tmp_path / "d.sock"), admin)
        rude.say(type="subscribe", topics=["training_progress"])
        await eventually(lambda: core.hub._listeners)
        for n in range(MANY):
            await core.store.publish(progress("user_x", part=n / 1000, **LARGE))
        await eventually(lambda: not core.connections and not server.server_state.connections)
        rude.writer.close()


async def test_a_slow_peer_holds_nobody_up(path: str, core: Core, admin):
    rude = await Rude.join(path, admin)
    rude.say(type="subscribe", topics=["training_progress"])
    async with joined(path, admin) as quick:
        await subscribed(quick)
        await eventually(lambda: len(core.hub._listeners) == 2)
        for n in range(200):
            await core.store.publish(progress("user_x", part=n / 1000, **LARGE))
            assert (await said(quick))["progress"] == n / 1000
    rude.writer.close()


async def test_who_answers_no_ping_is_dropped(gateway: Gateway, core: Core, admin, tmp_path: Path):
    async with serving(gateway, str(tmp_path / "p.sock"), ws_ping_interval=0.1, ws_ping_timeout=0.1) as server:
        rude = await Rude.join(str(tmp_path / "p.sock"), admin)
        while not any(frame.opcode == Opcode.PING for frame in await rude.read()):
            pass
        await eventually(lambda: not core.connections)
        deaf = await Rude.join(str(tmp_path / "p.sock"), admin)
        deaf.say(type="subscribe", topics=["training_progress"])
        await eventually(lambda: core.hub._listeners)
        for n in range(MANY // 4):
            await core.store.publish(progress("user_x", part=n / 1000, **LARGE))
        await eventually(lambda: not core.connections and not server.server_state.connections)
        deaf.writer.close()
        async with joined(str(tmp_path / "p.sock"), admin) as polite:
            await asyncio.sleep(0.4)
            await subscribed(polite)


async def test_pings_whose_answers_are_not_read_do_not_fill_the_memory(path: str, core: Core, admin):
    rude = await Rude.join(path, admin)
    await eventually(lambda: len(core.connections) == 1)

    async def flood() -> None:
        while True:
            for _ in range(1000):
                rude.protocol.send_ping(b"x" * 125)
            rude.flush()
            await rude.writer.drain()

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(flood(), 10)
    await eventually(lambda: not core.connections)


async def test_a_message_of_endless_empty_parts_ends_the_connection(path: str, core: Core, admin):
    rude = await Rude.join(path, admin)
    empty = Frame(Opcode.CONT, b"", fin=False).serialize(mask=True, extensions=[])
    rude.writer.write(Frame(Opcode.TEXT, b"", fin=False).serialize(mask=True, extensions=[]) + empty * 2000)
    assert await rude.gone()
    await eventually(lambda: not core.connections)


@pytest.fixture
def restartable() -> Iterator[Redis]:
    with tempfile.TemporaryDirectory(prefix="village-test-") as name:
        redis = Redis(Path(name))
        redis.start()
        yield redis
        redis.kill()


async def a_gateway(url: str, home: Path) -> Core:
    store = Store(url)
    core = Core(
        settings=Settings(home=home, redis_url=url), store=store, identity=Identity(store, passwords=Passwords(QUICK)),
        limiter=Limiter(url, roomy()), hub=Hub(store), readiness=Readiness({"store": reachable(store)}),
    )  # fmt: skip
    await core.start()
    return core


async def test_two_gateways_tell_the_same_and_a_client_may_change_between_them(redis_url: str, store, tmp_path: Path):
    cores = [await a_gateway(redis_url, tmp_path) for _ in range(2)]
    await cores[0].identity.create_user(ADMIN, PASSWORD, ADMIN_SCOPES, "enterprise")
    headers = {"Authorization": f"Bearer {(await cores[0].identity.token(ADMIN, PASSWORD)).access_token}"}
    paths = [str(tmp_path / f"{n}.sock") for n in range(2)]
    async with AsyncExitStack() as stack:
        for core, path in zip(cores, paths, strict=True):
            await stack.enter_async_context(serving(build_gateway(core), path))
        async with joined(paths[0], headers) as one, joined(paths[1], headers) as two:
            for socket in (one, two):
                await subscribed(socket)
            await cores[0].store.publish(progress("user_x", part=0.1))
            first, same = await said(one), await said(two)
            assert first == same
        await cores[1].store.publish(progress("user_x", part=0.2))
        async with joined(paths[1], headers) as moved:
            await subscribed(moved, last_event_id=first["event_id"])
            assert (await said(moved))["progress"] == 0.2
        await cores[0].identity.disable(ADMIN)
    for core in cores:
        await core.identity.settled()
        await core.close()


async def test_a_user_put_out_on_one_gateway_is_put_out_on_the_other(redis_url: str, store, tmp_path: Path):
    cores = [await a_gateway(redis_url, tmp_path) for _ in range(2)]
    await cores[0].identity.create_user("ann", PASSWORD)
    headers = {"Authorization": f"Bearer {(await cores[0].identity.token('ann', PASSWORD)).access_token}"}
    path = str(tmp_path / "a.sock")
    async with serving(build_gateway(cores[0]), path), joined(path, headers) as socket:
        await cores[1].identity.disable("ann")
        await cores[0].connections.check()
        with pytest.raises(ConnectionClosed) as closed:
            await said(socket)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
    for core in cores:
        await core.identity.settled()
        await core.close()


@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_a_redis_that_comes_back_costs_no_event_and_no_connection(restartable: Redis, tmp_path: Path, how: str):
    await restartable.answers()
    core = await a_gateway(restartable.url, tmp_path)
    await core.identity.create_user(ADMIN, PASSWORD, ADMIN_SCOPES, "enterprise")
    headers = {"Authorization": f"Bearer {(await core.identity.token(ADMIN, PASSWORD)).access_token}"}
    path = str(tmp_path / "r.sock")
    async with serving(build_gateway(core), path), joined(path, headers) as socket:
        await subscribed(socket)
        await core.store.publish(progress("user_x", part=0.1))
        assert (await said(socket))["progress"] == 0.1
        if how == "killed":
            restartable.kill()
            await socket.send('{"type": "subscribe", "topics": ["training_progress"]}')
            assert (await said(socket))["error_code"] == "SERVICE_UNAVAILABLE"
            restartable.start()
            await restartable.answers()
        else:
            restartable.send(signal.SIGSTOP)
            await asyncio.sleep(0.3)
            restartable.send(signal.SIGCONT)
        other = Store(restartable.url)
        for part in (0.2, 0.3):
            await other.publish(progress("user_x", part=part))
        await other.close()
        assert [(await said(socket))["progress"] for _ in range(2)] == [0.2, 0.3]
    await core.identity.settled()
    await core.close()
