"""The reference worker against the real farm: a gateway, its keeper, a registry, and trainings that learn something."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import tiny_farm
from eventually import eventually
from farm_harness import TASKS, install, kept, ordered
from http_harness import ADMIN, PASSWORD, Client
from safetensors.torch import load
from socket_harness import serving

from cluster.clock import utc_now
from serve_apps.core import Core
from serve_apps.gateway import Gateway
from train.farm.identity import Credential, Folder
from train.farm.protocol import Session
from train.farm.transfer import Gateway as Files
from train.farm.worker import Options, Worker
from train.models import Models
from train.registry import Model, ModelState

MODEL = "model_tiny"


@pytest.fixture
async def url(gateway: Gateway, core: Core) -> AsyncIterator[str]:
    """A gateway with a farm and a registry that has one small model."""
    install(core)
    core.models = Models(core.store, utc_now)
    folder = tiny_farm.model(core.settings.home / "models" / MODEL)
    record = Model(model_id=MODEL, name="tiny", owner="all", public=True, state=ModelState.COMPLETED,
                   path=str(folder), created_at=utc_now())  # fmt: skip
    await core.store.upsert(record, lambda _: record)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with kept(core), serving(gateway, None, host="127.0.0.1", port=port):
        yield f"http://127.0.0.1:{port}"
    await core.desk.close()


@asynccontextmanager
async def working(url: str, home: Path, name: str) -> AsyncIterator[Worker]:
    """A worker that signs in with a password."""
    lines: list[str] = []
    os.makedirs(home, exist_ok=True)
    files = Files(url, Credential(username=ADMIN, password=PASSWORD), name, lines.append)
    options = Options(url.replace("http", "ws") + "/farm/ws", local={"tiny": tiny_farm.text(home / "tiny.txt")},
                      reconnect_seconds=0.05, beat_seconds=0.2, checkpoint_seconds=0.05)  # fmt: skip
    made = Worker(options, Session(name, lambda: "2024-11-04T12:00:00Z"), files, Folder(home, name), lines.append)
    running = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        made.leave()
        await asyncio.wait_for(running, 30)
        await files.close()


async def look(client: Client, admin, task_id: str) -> dict:
    return (await client.get(f"{TASKS}/{task_id}", headers=admin)).json()


async def status(client: Client, admin, task_id: str, wanted: str, within: float = 30) -> dict:
    async def now():
        told = await look(client, admin, task_id)
        assert told["status"] in (wanted, "pending", "running", "paused"), told
        return told if told["status"] == wanted else None

    return await eventually(now, within)


def order(**fields):
    return {
        "name": "tiny",
        "model": MODEL,
        "dataset": "tiny",
        "batch_size": 4,
        "learning_rate": 0.01,
        "seed": 7,
    } | fields


async def test_two_workers_train_two_rounds_and_leave_an_average_that_has_learnt(
    url: str, client: Client, core: Core, admin, tmp_path: Path
):
    async with working(url, tmp_path / "a", "one"), working(url, tmp_path / "b", "two"):
        task_id = await ordered(client, admin, **order(n_clients=2, rounds=2, steps=20, distributed=True))
        told = await status(client, admin, task_id, "completed")
    assert told["progress"] == 100 and told["metrics"]["final_loss"] < 4
    average = load((await client.get(f"{TASKS}/{task_id}/checkpoint", headers=admin)).content)
    begun = load((Path(core.settings.home) / "models" / MODEL / "model.safetensors").read_bytes())
    assert average.keys() == begun.keys()
    assert any((average[name] != begun[name]).any() for name in begun)
    ranks = [
        load((await client.get(f"{TASKS}/{task_id}/checkpoints/{rank}?round=1", headers=admin)).content)
        for rank in (0, 1)
    ]
    name = "model.norm.weight"
    assert (ranks[0][name] != ranks[1][name]).any()  # each learnt from its own share
    between = (ranks[0][name] + ranks[1][name]) / 2
    assert (average[name] - between).abs().max() < 1e-5


async def test_an_owner_pauses_resumes_and_stops_it(url: str, client: Client, admin, tmp_path: Path):
    async def put(wanted: str) -> None:
        answer = await client.put(f"{TASKS}/{task_id}/status", json={"status": wanted}, headers=admin)
        assert answer.status_code == 200, answer.text

    async with working(url, tmp_path / "a", "one") as one:
        task_id = await ordered(client, admin, **order(steps=1_000_000))
        await eventually(lambda: one.work and list(one.folder.path.rglob("step-*.json")), 20)
        await put("paused")
        await eventually(lambda: one.work and one.work.control.paused)
        await put("running")
        await eventually(lambda: one.work and not one.work.control.paused)
        await put("cancelled")
        await eventually(lambda: one.session.task is None and not one.session.results, 20)
        assert one.succeeded is False


async def test_a_worker_that_is_started_again_goes_on_with_its_lease(url: str, client: Client, admin, tmp_path: Path):
    async with working(url, tmp_path / "a", "one") as one:
        task_id = await ordered(client, admin, **order(steps=300))
        await eventually(lambda: list(one.folder.path.rglob("step-*.json")), 20)
    assert (await look(client, admin, task_id))["status"] == "running"
    async with working(url, tmp_path / "a", "one") as again:
        await eventually(lambda: again.work is not None)
        assert again.work.task.resumed
        told = await status(client, admin, task_id, "completed")
    assert told["metrics"]["final_loss"] < told["metrics"]["loss_before"]
    clients = (await client.get("/api/clients/one", headers=admin)).json()
    assert clients["performance"]["completed_tasks"] == 1
