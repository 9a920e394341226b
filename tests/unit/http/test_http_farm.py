"""The farm's HTTP face: the document's shapes, pages, whose things are whose, and checkpoints that are none."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from farm_harness import TASKS, install, kept, ordered, upload, weights, worker
from http_harness import Client
from safetensors.numpy import load, save
from socket_harness import serving
from test_contract import EXAMPLES, unlike

from cluster.farm.model import Client as FarmClient
from serve_apps.core import Core
from serve_apps.gateway import Gateway

ORDER = EXAMPLES["aifarm POST /api/tasks"]["request"]


@pytest.fixture
async def path(gateway: Gateway, core: Core, tmp_path: Path) -> AsyncIterator[str]:
    """Where a gateway with a farm listens; 1 MB a checkpoint."""
    install(core, farm_upload_mb=1)
    socket = str(tmp_path / "g.sock")
    async with kept(core), serving(gateway, socket):
        yield socket
    await core.desk.close()


async def test_the_farm_has_the_shapes_of_its_examples(path: str, client: Client, admin):
    made = await client.post(TASKS, json=ORDER | {"n_clients": 1, "distributed": False}, headers=admin)
    assert made.status_code == 201 and not unlike("aifarm POST /api/tasks", made)
    task_id = made.json()["id"]
    here = f"{TASKS}/{task_id}"
    async with worker(path, admin) as one:
        await one.given()
        metrics = {"loss": 0.5, "accuracy": 0.9, "learning_rate": 0.001}
        await one.say("task_progress", task_id=task_id, progress=45.5, metrics=metrics)
        await one.say("task_request")
        await one.heard("task")
        for key, url in (
            ("aifarm GET /api/tasks", TASKS), ("aifarm GET /api/tasks/{task_id}", here),
            ("aifarm GET /api/clients", "/api/clients"),
            ("aifarm GET /api/clients/{client_id}", "/api/clients/one"), ("aifarm GET /api/metrics", "/api/metrics"),
            ("aifarm GET /api/metrics/tasks/{task_id}", f"/api/metrics/tasks/{task_id}"),
        ):  # fmt: skip
            assert not unlike(key, await client.get(url, headers=admin)), key
        measured = (await client.get(f"/api/metrics/tasks/{task_id}", headers=admin)).json()
        assert measured["progress"] == 45.5 and measured["metrics"] == metrics
        assert measured["resources"] == {"cpu_usage": 45.2, "ram_usage": 60.5, "gpu_usage": 0.0}
        of_all = (await client.get("/api/metrics", headers=admin)).json()
        assert of_all["clients"] == {"total": 1, "active": 1} and of_all["tasks"]["running"] == 1
        told = (await client.get(here, headers=admin)).json()
        assert told["config"]["name"] == "model_name" and told["config"]["url"] == ORDER["url"]
        about = (await client.get("/api/clients/one", headers=admin)).json()
        assert about["tasks"][0] == {
            "id": task_id, "status": "running", "progress": 45.5, "round": 0, "rank": 0, "attempt": 1
        }  # fmt: skip
        for status in ("paused", "running"):
            answer = await client.put(f"{here}/status", json={"status": status, "reason": "r"}, headers=admin)
            assert not unlike("aifarm PUT /api/tasks/{task_id}/status", answer)
        await one.done(task_id)
    answer = await client.delete(here, headers=admin)
    assert answer.status_code == EXAMPLES["aifarm DELETE /api/tasks/{task_id}"]["status"] and not answer.content


async def test_where_nothing_was_told_nothing_is_made_up(path: str, core: Core, client: Client, admin):
    empty = (await client.get("/api/metrics", headers=admin)).json()
    assert empty["resources"] == {"cpu_usage": None, "ram_usage": None, "gpu_usage": None}
    task_id = await ordered(client, admin)
    told = (await client.get(f"/api/metrics/tasks/{task_id}", headers=admin)).json()
    assert told["progress"] == 0 and told["metrics"] == {} and set(told["resources"].values()) == {None}
    async with worker(path, admin, resources=None):
        about = (await client.get("/api/clients/one", headers=admin)).json()
        assert about["resources"] == {"cpu": {}, "ram": {}, "gpu": {}} and about["performance"]["ended_tasks"] == 0


async def test_performance_is_what_was_measured(path: str, client: Client, admin):
    async with worker(path, admin) as one:
        for status in ("completed", "completed", "failed", "stopped"):
            task_id = await ordered(client, admin, max_retries=0)
            await one.given()
            await one.done(task_id, status)
            if status == "stopped":
                await client.delete(f"{TASKS}/{task_id}", headers=admin)
    about = (await client.get("/api/clients/one", headers=admin)).json()
    assert about["performance"]["completed_tasks"] == 2 and about["performance"]["success_rate"] == pytest.approx(2 / 3)
    assert 0 < about["performance"]["average_time"] < 5


async def test_pages_and_their_headers(path: str, client: Client, admin):
    ids = [await ordered(client, admin, type="training" if n % 2 else "tuning") for n in range(5)]
    first = await client.get(f"{TASKS}?page=1&limit=2&status=pending", headers=admin)
    assert [task["id"] for task in first.json()["tasks"]] == ids[:2:-1]
    assert (first.json()["total"], first.json()["page"]) == (5, 1)
    assert (first.headers["x-total-count"], first.headers["x-page-count"]) == ("5", "3")
    assert first.headers["x-api-version"] == "1.0" and first.headers["x-ratelimit-limit"]
    links = dict(reversed(link.split("; rel=")) for link in first.headers["link"].split(", "))
    assert links.keys() == {'"first"', '"next"', '"last"'}
    second = await client.get(links['"next"'].strip("<>"), headers=admin)
    assert [task["id"] for task in second.json()["tasks"]] == [ids[2], ids[1]] and second.json()["page"] == 2
    assert 'rel="prev"' in second.headers["link"]
    beyond = await client.get(f"{TASKS}?page=9&limit=2", headers=admin)
    assert beyond.json()["tasks"] == [] and 'rel="next"' not in beyond.headers["link"]
    assert (await client.get(f"{TASKS}?type=tuning", headers=admin)).json()["total"] == 3
    assert (await client.get(f"{TASKS}?type=tuning&status=running", headers=admin)).json()["total"] == 0
    for wrong in ("page=0", "limit=0", "limit=101", "status=nice", "type=a:b"):
        answer = await client.get(f"{TASKS}?{wrong}", headers=admin)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_REQUEST"), wrong


async def test_clients_are_listed_by_whether_they_are_active(path: str, core: Core, client: Client, admin, user):
    ann = await user("ann")
    async with worker(path, admin, "mine"), worker(path, ann, "hers"):
        await asyncio.sleep(0.05)
    listed = (await client.get("/api/clients?status=active", headers=admin)).json()
    assert {one["id"] for one in listed["clients"]} == {"mine", "hers"}
    assert [one["id"] for one in (await client.get("/api/clients", headers=ann)).json()["clients"]] == ["hers"]
    old = await core.store.get(FarmClient, "mine")
    long_ago = old.last_seen.replace(year=2020)
    await core.store.change(FarmClient, "mine", lambda c: c.model_copy(update={"last_seen": long_ago}))
    idle = (await client.get("/api/clients?status=inactive", headers=admin)).json()
    assert [(one["id"], one["status"]) for one in idle["clients"]] == [("mine", "inactive")]
    answer = await client.get("/api/clients/mine", headers=ann)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND")


async def test_anothers_task_is_a_404_everywhere(path: str, client: Client, admin, user):
    ann, bob = await user("ann"), await user("bob")
    task_id = await ordered(client, ann)
    async with worker(path, ann) as one:
        data = await one.given()
        assert (await upload(client, ann, data, "one", weights(1.0))).status_code == 200
        assert (await upload(client, bob, data, "one", weights(1.0))).status_code == 404
        assert (await upload(client, bob, data, "", weights(1.0))).status_code == 404
        for method, url, body in (
            ("GET", "", None), ("DELETE", "", None), ("PUT", "/status", {"status": "cancelled"}),
            ("GET", "/checkpoint", None), ("GET", "/checkpoints/0", None),
        ):  # fmt: skip
            answer = await client.request(method, f"{TASKS}/{task_id}{url}", headers=bob, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND"), (method, url)
        assert (await client.get(f"/api/metrics/tasks/{task_id}", headers=bob)).status_code == 404
        assert (await client.get(TASKS, headers=bob)).json()["total"] == 0
        assert (await client.get(f"{TASKS}/{task_id}", headers=admin)).status_code == 200


async def test_a_stranger_who_works_on_a_task_may_read_and_write_its_checkpoints(path: str, client: Client, user):
    """Any client may be given any owner's rank; it then gets to the checkpoints, for as long as it holds it."""
    ann, bob = await user("ann"), await user("bob", frozenset({"agents:write", "tasks:read"}))
    task_id = await ordered(client, ann, rounds=2)
    async with worker(path, bob, "volunteer") as one:
        data = await one.given()
        assert (await client.get(f"{TASKS}/{task_id}", headers=bob)).status_code == 404
        named = bob | {"Client-ID": "volunteer"}
        assert (await upload(client, bob, data, "volunteer", weights(2.0))).status_code == 200
        assert (await client.get(f"{TASKS}/{task_id}/checkpoints/0", headers=named)).status_code == 200
        await one.done(task_id)
        second = await one.given()
        assert (await client.get(second["config"]["checkpoint"], headers=named)).status_code == 200
        assert (await client.get(second["config"]["checkpoint"], headers=bob)).status_code == 404, "no Client-ID"
        early = await upload(client, bob, data, "volunteer", weights(2.0))
        assert (early.status_code, early.json()["error"]["code"]) == (409, "CONFLICT"), "that round is over"
        await one.done(task_id)
        late = await upload(client, bob, second, "volunteer", weights(2.0))
        assert (late.status_code, late.json()["error"]["code"]) == (409, "CONFLICT")
        assert (await client.get(second["config"]["checkpoint"], headers=named)).status_code == 404


async def test_an_owner_who_does_not_work_on_it_uploads_nothing(path: str, client: Client, admin, user):
    ann, bob = await user("ann"), await user("bob")
    await ordered(client, ann)
    async with worker(path, bob, "volunteer") as one, worker(path, ann, "hers"):
        data = await one.given()
        answer = await upload(client, ann, data, "", weights(1.0))
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "FORBIDDEN")
        answer = await upload(client, ann, data, "hers", weights(1.0))
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "CONFLICT")


def no_header() -> bytes:
    return b"\xff" * 64


def wrong_offsets() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + b"\x00" * 8


def cut_short() -> bytes:
    return save(weights(1.0))[:-4]


def infinite() -> bytes:
    return save({"w": np.array([1.0, np.inf], np.float32)})


def pickled() -> bytes:
    import pickle

    return pickle.dumps({"w": [1, 2, 3]})


@pytest.mark.parametrize("body", [bytes, no_header, wrong_offsets, cut_short, infinite, pickled])
async def test_what_is_no_checkpoint_is_refused_and_leaves_nothing(path: str, core: Core, client: Client, admin, body):
    task_id = await ordered(client, admin)
    async with worker(path, admin) as one:
        data = await one.given()
        headers = admin | {"Client-ID": "one"}
        answer = await client.put(data["config"]["upload"], content=body(), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_REQUEST"), answer.text
        assert "refused" in answer.json()["error"]["message"]
        folder = core.farm.checkpoints.files.task(task_id)
        assert not [file for file in folder.rglob("*") if file.is_file()]
        assert (await client.get(f"{TASKS}/{task_id}/checkpoints/0", headers=admin)).status_code == 404


async def test_a_checkpoint_over_the_limit_is_refused_before_and_while_it_is_read(path: str, core: Core, client, admin):
    task_id = await ordered(client, admin)

    async def endless():
        for _ in range(64):
            yield b"\x00" * (64 << 10)

    async with worker(path, admin) as one:
        where = (await one.given())["config"]["upload"]
        headers = admin | {"Client-ID": "one"}
        told = await client.put(where, content=b"\x00" * (2 << 20), headers=headers)
        untold = await client.put(where, content=endless(), headers=headers)
        assert [(a.status_code, a.json()["error"]["code"]) for a in (told, untold)] == [(413, "INVALID_REQUEST")] * 2
    folder = core.farm.checkpoints.files.task(task_id)
    assert not [file for file in folder.rglob("*") if file.is_file()]


async def test_a_checkpoint_of_another_shape_is_not_averaged(path: str, client: Client, admin):
    """In the first round most decide; after that the model that the round began with."""
    task_id = await ordered(client, admin, n_clients=3, rounds=2)
    async with worker(path, admin, "a") as a, worker(path, admin, "b") as b, worker(path, admin, "c") as c:
        for each in (a, b, c):
            data = await each.given()
            odd = data["config"]["rank"] == 1
            answer = await upload(client, admin, data, each.client_id, weights(1.0, size=5 if odd else 4))
            assert answer.status_code == 200
            await each.done(task_id)
        data = await a.given()
        told = (await client.get(f"{TASKS}/{task_id}", headers=admin)).json()
        [first] = told["history"]
        assert first["refused"] == {"1": "w is F32 [2, 5], and should be F32 [2, 4]"} and first["aggregated"] is True
        answer = await upload(client, admin, data, "a", weights(1.0, size=5))
        assert answer.status_code == 400 and "[2, 5]" in answer.json()["error"]["message"]
        average = await client.get(f"{TASKS}/{task_id}/checkpoint", headers=admin)
        assert load(average.content)["w"].shape == (2, 4)


async def test_an_order_has_bounds(path: str, client: Client, admin):
    for wrong in (
        {"type": ""}, {"type": "a b"}, {"n_clients": 0}, {"n_clients": 1001}, {"rounds": 0}, {"learning_rate": 0},
        {"batch_size": 0}, {"requirements": {"min_ram": -1}}, {"straggler_seconds": 0}, {"max_retries": 11},
        {"min_ranks": 3, "n_clients": 2}, {"seed": -1}, {"steps": 0}, {"timeout_seconds": 0}, {"name": "x" * 201},
    ):  # fmt: skip
        answer = await client.post(TASKS, json={"type": "training"} | wrong, headers=admin)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_REQUEST"), wrong
    nameless = await client.post(TASKS, json={"name": "x"}, headers=admin)
    assert (nameless.status_code, nameless.json()["error"]["code"]) == (400, "INVALID_REQUEST")


async def test_a_status_that_is_the_tasks_own_changes_nothing(path: str, client: Client, admin):
    task_id = await ordered(client, admin)
    where = f"{TASKS}/{task_id}/status"
    first, second = [await client.put(where, json={"status": "paused"}, headers=admin) for _ in range(2)]
    assert first.json() == second.json()
    for status in ("pending", "completed", "failed", "nice"):
        assert (await client.put(where, json={"status": status}, headers=admin)).status_code == 400
    assert (await client.put(where, json={"status": "cancelled"}, headers=admin)).status_code == 200
    assert (await client.put(where, json={"status": "paused"}, headers=admin)).status_code == 409
    assert (await client.put(where, json={"status": "cancelled"}, headers=admin)).status_code == 200


async def test_a_repeated_order_with_its_key_is_one_task(path: str, client: Client, admin):
    headers = admin | {"Idempotency-Key": "k1"}
    first, second = [await client.post(TASKS, json={"type": "training"}, headers=headers) for _ in range(2)]
    assert first.json() == second.json() and (await client.get(TASKS, headers=admin)).json()["total"] == 1


async def test_the_url_of_an_order_is_never_opened(path: str, client: Client, admin):
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, worker(path, admin) as one:
        task_id = await ordered(client, admin, url=f"http://127.0.0.1:{port}/models/model/1.0", version="1.0")
        data = await one.given()
        assert data["config"]["url"].endswith("/models/model/1.0")
        await one.done(task_id, checkpoint_path=f"http://127.0.0.1:{port}/model.pt")
        await asyncio.sleep(0.2)
    assert not asked
