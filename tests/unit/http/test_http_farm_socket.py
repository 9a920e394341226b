"""`/farm/ws` over a real uvicorn: farm clients at work, and what owners do meanwhile over HTTP."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from eventually import eventually
from farm_harness import ROOMY, TASKS, Worker, install, kept, ordered, upload, weights, worker
from http_harness import Client
from safetensors.numpy import load
from socket_harness import serving
from websockets.asyncio.client import unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cluster.farm.model import Client as FarmClient
from cluster.farm.model import FarmTask, Rank
from cluster.identity.model import SYSTEM
from serve_apps.core import Core
from serve_apps.gateway import Gateway, build_gateway
from serve_apps.kit.hub import Hub


@pytest.fixture
async def path(gateway: Gateway, core: Core, tmp_path: Path) -> AsyncIterator[str]:
    """Where a gateway with a farm listens."""
    install(core)
    socket = str(tmp_path / "g.sock")
    async with kept(core), serving(gateway, socket):
        yield socket
    await core.desk.close()


async def closed(who: Worker) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as ended:
        while True:
            await asyncio.wait_for(who.socket.recv(), 5)
    assert ended.value.rcvd is not None
    return ended.value.rcvd.code, ended.value.rcvd.reason


async def refused(path: str, headers: dict[str, str]) -> int:
    with pytest.raises(InvalidStatus) as answer:
        async with unix_connect(path, "ws://village/farm/ws", additional_headers=headers):
            pass
    return answer.value.response.status_code


async def status_of(client: Client, headers: dict[str, str], task_id: str, status: str) -> dict:
    async def now():
        told = (await client.get(f"{TASKS}/{task_id}", headers=headers)).json()
        return told if told["status"] == status else None

    return await eventually(now)


async def put_status(client: Client, headers: dict[str, str], task_id: str, status: str) -> dict:
    answer = await client.put(f"{TASKS}/{task_id}/status", json={"status": status, "reason": "test"}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_one_task_from_order_to_result(path: str, client: Client, admin):
    async with worker(path, admin) as one:
        await one.say("task_request")
        task_id = await ordered(
            client, admin, name="m", url="http://model/1", version="1.0", batch_size=32, learning_rate=0.001, epochs=10,
            requirements={"min_cpu_cores": 1, "min_ram": 1}, seed=7,
        )  # fmt: skip
        task = await one.heard("task")
        assert task["data"] == {
            "id": task_id, "type": "training",
            "config": {
                "name": "m", "version": "1.0", "url": "http://model/1", "batch_size": 32, "learning_rate": 0.001,
                "epochs": 10, "distributed": False, "rank": 0, "world_size": 1, "round": 0, "rounds": 1, "attempt": 1,
                "lease_seconds": 30.0, "timeout_seconds": 3600, "model": None, "dataset": None, "checkpoint": None,
                "upload": f"/api/tasks/{task_id}/checkpoints/0?round=0", "steps": None, "seed": 7,
            },
            "requirements": {"min_gpu_memory": 0, "min_cpu_cores": 1, "min_ram": 1},
        }  # fmt: skip
        assert (await status_of(client, admin, task_id, "running"))["progress"] == 0
        await one.say("task_progress", task_id=task_id, progress=45.5, metrics={"loss": 0.5, "note": "x"})
        seen = await eventually(lambda: progressed(client, admin, task_id, 45.5))
        assert seen["metrics"] == {"loss": 0.5, "note": "x"} and seen["ranks"][0]["client_id"] == "one"
        ack = await one.done(task_id, metrics={"final_loss": 0.1}, checkpoint_path="/etc/passwd")
        assert ack["received"] is True and ack["accepted"] is True and ack["task_id"] == task_id
        done = await status_of(client, admin, task_id, "completed")
        assert done["progress"] == 100 and done["metrics"]["final_loss"] == 0.1 and done["aggregated"] is False
        again = await one.done(task_id)
        assert again["received"] is True and (again["accepted"], again["reason"]) == (False, "duplicate")


async def progressed(client: Client, headers: dict[str, str], task_id: str, progress: float) -> dict | None:
    told = (await client.get(f"{TASKS}/{task_id}", headers=headers)).json()
    return told if told["progress"] == progress else None


async def test_who_may_connect(path: str, core: Core, user, client: Client, admin):
    ann, bob = await user("ann"), await user("bob")
    reader = await user("eve", frozenset({"read"}))
    assert await refused(path, {"Client-ID": "one", "Authorization": "Bearer nonsense"}) == 401
    assert await refused(path, {"Client-ID": "one"}) == 401
    assert await refused(path, {"Client-ID": "one"} | reader) == 403
    for bad in ({}, {"Client-ID": "a b"}, {"Client-ID": "x" * 129}, {"Client-ID": ""}):
        assert await refused(path, bad | ann) == 400
    async with worker(path, ann):
        assert await refused(path, {"Client-ID": "one"} | bob) == 403
        assert await refused(path, {"Client-ID": "one"} | admin) == 403, "an id is one machine's, not its admin's"
    key = await client.post(
        "/ains/api-keys", json={"client_id": "app", "name": "k", "scopes": ["agents:write"]}, headers=admin
    )
    async with worker(path, {"X-API-Key": key.json()["api_key"]}, "two") as two:
        assert await two.silent()


async def test_a_second_connection_replaces_the_first(path: str, core: Core, client: Client, admin):
    async with worker(path, admin) as first:
        await first.say("task_request")
        async with worker(path, admin) as second:
            assert await closed(first) == (1008, "replaced")
            assert await second.silent()
            task_id = await ordered(client, admin)
            assert (await second.given())["id"] == task_id


async def test_a_reconnect_keeps_the_lease(path: str, core: Core, client: Client, admin):
    task_id = await ordered(client, admin)
    async with worker(path, admin) as one:
        assert "resumed" not in await one.given()
        await one.say("task_progress", task_id=task_id, progress=10)
        await eventually(lambda: progressed(client, admin, task_id, 10))
    async with worker(path, admin, "two") as two, worker(path, admin) as one:
        await two.say("task_request")
        data = await one.given()
        assert data["id"] == task_id and data["resumed"] is True and data["config"]["attempt"] == 1
        assert (await one.given())["resumed"] is True, "and again, as often as it asks"
        assert (await one.done(task_id))["accepted"] is True
        assert await two.silent()


async def test_a_client_may_go_on_without_asking_again(path: str, core: Core, client: Client, admin):
    task_id = await ordered(client, admin)
    async with worker(path, admin) as one:
        await one.given()
    async with worker(path, admin) as one:
        await one.say("task_progress", task_id=task_id, progress=50)
        assert (await one.done(task_id))["accepted"] is True


async def test_a_pause_or_a_stop_while_away_is_told_on_return(path: str, core: Core, client: Client, admin):
    task_id = await ordered(client, admin)
    async with worker(path, admin) as one:
        await one.given()
    await put_status(client, admin, task_id, "paused")
    async with worker(path, admin) as one:
        assert (await one.heard())["action"] == "pause"
    await put_status(client, admin, task_id, "running")
    async with worker(path, admin) as one:
        assert (await one.heard())["action"] == "resume"
    await put_status(client, admin, task_id, "cancelled")
    async with worker(path, admin) as one:
        await one.say("task_progress", task_id=task_id, progress=60)
        assert (await one.heard("control"))["action"] == "stop"


async def test_pause_resume_and_stop_reach_who_works_on_it(path: str, core: Core, client: Client, admin):
    task_id = await ordered(client, admin, n_clients=2)
    async with worker(path, admin) as one, worker(path, admin, "two") as two, worker(path, admin, "idle") as idle:
        await one.given()
        await two.given()
        for status, action in (("paused", "pause"), ("running", "resume"), ("cancelled", "stop")):
            assert (await put_status(client, admin, task_id, status))["status"] == status
            for each in (one, two):
                control = await each.heard()
                assert (control["type"], control["action"], control["task_id"]) == ("control", action, task_id)
        assert await idle.silent()
        late = await one.done(task_id, "stopped")
        assert late["received"] is True and late["accepted"] is False
        illegal = await client.put(f"{TASKS}/{task_id}/status", json={"status": "running"}, headers=admin)
        assert (illegal.status_code, illegal.json()["error"]["code"]) == (409, "CONFLICT")
        await eventually(lambda: freed(core, "one"))
        other = await ordered(client, admin)
        assert (await one.given())["id"] == other


async def freed(core: Core, client_id: str) -> bool:
    return not (await core.store.get(FarmClient, client_id)).holds


async def test_a_paused_task_hands_out_nothing(path: str, core: Core, client: Client, admin):
    task_id = await ordered(client, admin)
    assert (await put_status(client, admin, task_id, "paused"))["status"] == "paused"
    async with worker(path, admin) as one:
        await one.say("task_request")
        assert await one.silent()
        assert (await put_status(client, admin, task_id, "running"))["status"] == "pending", "nobody has begun"
        assert (await one.heard("task"))["data"]["id"] == task_id


async def test_deleting_a_running_task_stops_it_and_leaves_nothing(path: str, core: Core, client: Client, admin):
    task_id = await ordered(client, admin)
    async with worker(path, admin) as one:
        data = await one.given()
        assert (await upload(client, admin, data, "one", weights(1.0))).status_code == 200
        folder = core.farm.checkpoints.files.task(task_id)
        assert folder.exists()
        assert (await client.delete(f"{TASKS}/{task_id}", headers=admin)).status_code == 204
        assert (await one.heard())["action"] == "stop"
        assert (await client.get(f"{TASKS}/{task_id}", headers=admin)).status_code == 404
        assert (await client.get(TASKS, headers=admin)).json()["total"] == 0

    async def gone() -> bool:
        left = await core.store.read((FarmTask, task_id), (Rank, f"{task_id}.0.0"))
        return not any(record for record, _ in left) and not folder.exists()

    await eventually(gone)
    assert await freed(core, "one")


async def test_a_lost_rank_is_handed_on_and_the_late_result_is_stale(
    gateway: Gateway, core: Core, client: Client, admin, tmp_path: Path
):
    install(core, farm_lease_seconds=0.3)
    socket = str(tmp_path / "g.sock")
    async with kept(core, farm_lease_seconds=0.3), serving(gateway, socket):
        task_id = await ordered(client, admin)
        async with worker(socket, admin) as one, worker(socket, admin, "two") as two:
            assert (await one.given())["config"]["lease_seconds"] == 0.3
            await two.say("task_request")
            assert (await one.heard("control"))["action"] == "stop", "it was silent for too long"
            data = (await two.heard("task"))["data"]
            assert (data["config"]["rank"], data["config"]["attempt"]) == (0, 2)
            late = await one.done(task_id)
            assert (late["received"], late["accepted"], late["reason"]) == (True, False, "stale")
            assert (await two.done(task_id))["accepted"] is True
            await status_of(client, admin, task_id, "completed")
    events = await core.store.events(limit=500)
    [lost] = [event for event in events if event.kind == "farm.rank_timeout"]
    assert lost.data["agent_id"] == "farm_one" and lost.data["outcome"] == "TIMEOUT"
    [won] = [event for event in events if event.kind == "farm.rank_completed"]
    assert won.data["agent_id"] == "farm_two" and won.data["outcome"] == "COMPLETED"
    assert won.data["execution_time_seconds"] >= 0 and won.data["timeout_seconds"] == 3600
    await core.desk.close()


async def test_heartbeats_keep_a_lease(gateway: Gateway, core: Core, client: Client, admin, tmp_path: Path):
    install(core, farm_lease_seconds=0.5)
    socket = str(tmp_path / "g.sock")
    async with kept(core, farm_lease_seconds=0.5), serving(gateway, socket):
        task_id = await ordered(client, admin)
        async with worker(socket, admin) as one:
            await one.given()
            for _ in range(8):
                await asyncio.sleep(0.15)
                await one.say("heartbeat", system_info={"cpu_usage": 1.0})
            assert (await one.done(task_id))["accepted"] is True
    await core.desk.close()


async def test_three_ranks_average_two_rounds(path: str, core: Core, client: Client, admin):
    task_id = await ordered(client, admin, n_clients=3, rounds=2)
    samples = [10, 20, 70]
    wanted = 0.0

    async def one_round(one: Worker, number: int) -> tuple[int, dict]:
        data = await one.given()
        config = data["config"]
        assert (config["world_size"], config["round"], config["distributed"]) == (3, number, True)
        start = 0.0
        if number:
            answer = await client.get(config["checkpoint"], headers=admin)
            assert answer.status_code == 200
            start = float(load(answer.content)["w"][0, 0])
        else:
            assert config["checkpoint"] is None
        mine = start + config["rank"] + 1
        taken = await upload(client, admin, data, one.client_id, weights(mine))
        assert taken.status_code == 200, taken.text
        ack = await one.done(
            task_id, samples=samples[config["rank"]], metrics={"loss": float(config["rank"])}, round=number
        )
        assert ack["accepted"] is True
        return config["rank"], data

    async with worker(path, admin, "a") as a, worker(path, admin, "b") as b, worker(path, admin, "c") as c:
        for number in range(2):
            done = await asyncio.gather(*(one_round(each, number) for each in (a, b, c)))
            assert sorted(rank for rank, _ in done) == [0, 1, 2]
            wanted += (10 * 1 + 20 * 2 + 70 * 3) / 100
            answer = await eventually(lambda n=number: averaged(client, admin, task_id, n + 1))
            found = load(answer.content)
            np.testing.assert_allclose(found["w"], np.full((2, 4), wanted), rtol=1e-6)
            assert found["steps"].tolist() == [3] and found["w"].dtype == np.float32
    told = await status_of(client, admin, task_id, "completed")
    assert told["aggregated"] is True and told["metrics"]["loss"] == pytest.approx((20 + 140) / 100)
    assert [(r["round"], r["completed"], r["samples"], r["aggregated"]) for r in told["history"]] == [
        (0, 3, 100, True), (1, 3, 100, True),
    ]  # fmt: skip
    newest = await client.get(told["checkpoint"], headers=admin)
    assert load(newest.content)["w"][0, 0] == pytest.approx(wanted)


async def averaged(client: Client, headers: dict[str, str], task_id: str, number: int):
    answer = await client.get(f"{TASKS}/{task_id}/checkpoint?round={number}", headers=headers)
    return (
        answer if answer.status_code == 200 and f"average-{number}." in answer.headers["content-disposition"] else None
    )


async def test_a_failed_rank_is_tried_again_until_no_try_is_left(path: str, core: Core, client: Client, admin):
    task_id = await ordered(client, admin, max_retries=1)
    async with worker(path, admin) as one:
        for attempt in (1, 2):
            assert (await one.given())["config"]["attempt"] == attempt
            assert (await one.done(task_id, "failed", error="out of memory"))["accepted"] is True
    told = await status_of(client, admin, task_id, "failed")
    assert "rank 0" in told["error"] and "out of memory" in told["error"]
    about = (await client.get("/api/clients/one", headers=admin)).json()
    assert about["performance"] == {"completed_tasks": 0, "ended_tasks": 2, "average_time": 0.0, "success_rate": 0.0}


async def test_who_stops_gives_its_rank_back_and_spends_nothing(path: str, core: Core, client: Client, admin):
    task_id = await ordered(client, admin, max_retries=0)
    async with worker(path, admin) as one, worker(path, admin, "two") as two:
        await one.given()
        assert (await one.done(task_id, "stopped"))["accepted"] is True
        assert (await two.given())["id"] == task_id
        assert (await two.done(task_id))["accepted"] is True
    await status_of(client, admin, task_id, "completed")
    kinds = [event.kind for event in await core.store.events(limit=500)]
    assert "farm.rank_released" in kinds and "farm.rank_failed" not in kinds


async def test_stragglers_are_cut_off_once_enough_have_reported(path: str, core: Core, client: Client, admin):
    task_id = await ordered(client, admin, n_clients=3, straggler_seconds=0.3)
    async with worker(path, admin, "a") as a, worker(path, admin, "b") as b, worker(path, admin, "late") as late:
        for each in (a, b, late):
            await each.given()
        await a.done(task_id)
        await asyncio.sleep(0.5)
        assert (await client.get(f"{TASKS}/{task_id}", headers=admin)).json()["status"] == "running", (
            "one is not enough"
        )
        await b.done(task_id)
        told = await status_of(client, admin, task_id, "completed")
        assert (told["history"][0]["completed"], told["history"][0]["left_out"]) == (2, 1)
        assert (await late.heard("control"))["action"] == "stop"
        ack = await late.done(task_id)
        assert (ack["accepted"], ack["reason"]) == (False, "stale")
    assert not [
        e for e in await core.store.events(limit=500) if e.data.get("agent_id") == "farm_late" and "outcome" in e.data
    ]


async def test_a_task_goes_to_who_can_hold_it(path: str, core: Core, client: Client, admin):
    big = ROOMY | {"gpu": [{"id": 0, "name": "G", "memory": {"total": 10240, "used": 3072}}]}
    heavy = await ordered(client, admin, requirements={"min_gpu_memory": 7000})
    async with (
        worker(path, admin, "bare", None) as bare,
        worker(path, admin, "big", big) as large,
        worker(path, admin, "small") as small,
    ):
        for each in (bare, small):
            await each.say("task_request")
            assert await each.silent(0.1)
        light = await ordered(client, admin, requirements={"min_cpu_cores": 1, "min_ram": 1})
        assert (await small.heard("task"))["data"]["id"] == light, "and the task before it holds nobody up"
        assert (await large.given())["id"] == heavy
        free = await ordered(client, admin)
        assert (await bare.heard("task"))["data"]["id"] == free


async def test_the_most_trusted_goes_first(path: str, core: Core, client: Client, admin):
    trust = core.farm.fleet.trust
    await trust.adjust(SYSTEM, "farm_good", 0.3, "test")
    async with worker(path, admin, "new") as new, worker(path, admin, "good") as good:
        await put_all_to_wait(core, new, good)
        task_id = await ordered(client, admin)
        assert (await good.heard("task"))["data"]["id"] == task_id
        assert await new.silent()
        told = (await client.get("/api/clients/good", headers=admin)).json()
        assert told["trust_score"] == pytest.approx(0.8, abs=1e-6)


async def put_all_to_wait(core: Core, *workers: Worker) -> None:
    for each in workers:
        await each.say("task_request")

    async def all_wait() -> bool:
        found = await core.store.many(FarmClient, [each.client_id for each in workers])
        return len(found) == len(workers) and all(client.waiting_since for client in found)

    await eventually(all_wait)


async def test_a_malformed_message_is_refused_and_the_connection_lives(path: str, core: Core, client: Client, admin):
    async with worker(path, admin) as one:
        for wrong, field in (
            ({"type": "task_progress", "task_id": "x", "progress": 101}, "progress"),
            ({"type": "task_progress", "progress": 1}, "task_id"),
            ({"type": "task_result", "task_id": "x", "status": "won"}, "status"),
            ({"type": "heartbeat", "system_info": {"cpu_usage": "hot"}}, "system_info.cpu_usage"),
            ({"type": "dance"}, "type"),
            ({"type": "heartbeat", "client_id": "two"}, "client_id"),
        ):
            await one.socket.send(json.dumps(wrong))
            told = await one.heard("error")
            assert (told["code"], told["details"]["field"]) == ("INVALID_REQUEST", field)
        await one.say("task_progress", task_id="task_unknown", progress=1)
        assert (await one.heard("error"))["code"] == "NOT_FOUND"
        ack = await one.done("task_unknown")
        assert (ack["received"], ack["accepted"], ack["reason"]) == (True, False, "not_assigned")


@pytest.mark.parametrize(("frame", "code"), [("{nonsense", 1003), (b"\x00\x01", 1003), ("x" * 70_000, 1008)])
async def test_what_is_no_message_ends_the_connection(path: str, admin, frame, code: int):
    async with worker(path, admin) as one:
        await one.socket.send(frame)
        assert (await closed(one))[0] == code


async def test_a_loss_that_is_not_a_number_is_null(path: str, core: Core, client: Client, admin):
    task_id = await ordered(client, admin)
    async with worker(path, admin) as one:
        await one.given()
        await one.socket.send(
            f'{{"type": "task_progress", "task_id": "{task_id}", "progress": 5, "metrics": {{"loss": NaN}}}}'
        )
        told = await eventually(lambda: progressed(client, admin, task_id, 5))
        assert told["metrics"] == {"loss": None}


async def test_sockets_of_several_gateways(
    path: str, gateway: Gateway, core: Core, client: Client, admin, tmp_path: Path
):
    """An owner's request comes to one gateway; the client is connected to another."""
    other = dataclasses.replace(core, hub=Hub(core.store))
    install(other)
    second = str(tmp_path / "second.sock")
    async with serving(build_gateway(other), second):
        task_id = await ordered(client, admin)
        async with worker(second, admin) as one:
            assert (await one.given())["id"] == task_id
            await put_status(client, admin, task_id, "paused")
            assert (await one.heard("control"))["action"] == "pause"
            async with worker(path, admin):
                assert await closed(one) == (1008, "replaced")
    await other.desk.close()
    await other.hub.close()


async def test_a_gateway_that_ends_says_so_and_the_lease_holds(
    gateway: Gateway, core: Core, client: Client, admin, tmp_path: Path
):
    install(core)
    first, second = str(tmp_path / "a.sock"), str(tmp_path / "b.sock")
    async with kept(core):
        task_id = await ordered(client, admin)
        async with serving(gateway, first) as server, worker(first, admin) as one:
            await one.given()
            server.should_exit = True
            assert (await closed(one))[0] == 1001
            other = dataclasses.replace(core, hub=Hub(core.store))
        install(other)
        async with serving(build_gateway(other), second), worker(second, admin) as one:
            assert (await one.given())["resumed"] is True
            assert (await one.done(task_id))["accepted"] is True
        await other.desk.close()
        await other.hub.close()
    await core.desk.close()


async def test_a_rank_for_a_connection_that_just_ended_goes_to_the_next(path: str, core: Core, client: Client, admin):
    async with worker(path, admin) as one:
        await put_all_to_wait(core, one)
        one.socket.transport.abort()
        task_id = await ordered(client, admin)
        async with worker(path, admin, "two") as two:
            assert (await two.given())["id"] == task_id


async def test_too_many_messages_end_the_connection(path: str, core: Core, admin, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serve_apps.dialects.aifarm.socket.MESSAGES", {"minute": 3})
    async with worker(path, admin, resources=None) as one:
        for _ in range(40):
            await one.say("heartbeat")
        assert (await one.heard("error"))["code"] == "RATE_LIMIT_EXCEEDED"
        assert (await closed(one))[0] == 1008
