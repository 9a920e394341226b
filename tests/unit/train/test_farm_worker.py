"""The worker against a farm that is played over real sockets: reconnects, control, results, files, kills."""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import tiny_farm
import torch
from eventually import eventually
from farm_server import KEY, PlayedFarm, tar_of
from safetensors.torch import load, load_file, save

from cluster.cli.main import parser
from cluster.cli.worker import options
from cluster.errors import Conflict, Invalid, Unauthenticated
from cluster.settings import Settings
from train.farm import models
from train.farm.__main__ import check_url, farm_url
from train.farm.data import tokenizer
from train.farm.identity import Credential, Folder, client_id
from train.farm.protocol import Session
from train.farm.transfer import Gateway
from train.farm.worker import Options, Worker


class Running:
    """A worker in this process, and what it said."""

    def __init__(self, farm: PlayedFarm, home: Path, name: str = "worker_1", credential: Credential | None = None,
                 **options) -> None:  # fmt: skip
        self.lines: list[str] = []
        self.folder = Folder(home, name)
        self.gateway = Gateway(farm.url, credential or Credential(api_key=KEY), name, self.lines.append)
        local = {"tiny": tiny_farm.text(home / "tiny.txt")}
        chosen = Options(farm.farm_url, **{"local": local, "reconnect_seconds": 0.05, "beat_seconds": 0.1} | options)
        self.session = Session(name, lambda: "2024-11-04T12:00:00Z")
        self.worker = Worker(chosen, self.session, self.gateway, self.folder, self.lines.append)


@asynccontextmanager
async def working(*given, **options) -> AsyncIterator[Running]:
    made = Running(*given, **options)
    running = asyncio.create_task(made.worker.run())
    try:
        yield made
    finally:
        made.worker.leave()
        try:
            await asyncio.wait_for(running, 30)
        finally:
            await made.gateway.close()


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory) -> bytes:
    return tar_of(tiny_farm.model(tmp_path_factory.mktemp("registry") / "model"))


@pytest.fixture
async def farm(tiny_model: bytes) -> AsyncIterator[PlayedFarm]:
    async with PlayedFarm() as played:
        played.models["model_tiny"] = tiny_model
        yield played


UPLOAD = "/api/tasks/task_1/checkpoints/0?round=0"


async def test_a_task_is_fetched_trained_handed_over_and_told(farm: PlayedFarm, tmp_path: Path):
    farm.assign()
    async with working(farm, tmp_path) as one:
        result = await farm.hears("task_result")
        await eventually(lambda: one.worker.succeeded)
        await farm.hears("task_request", 2)  # and it asks for the next one
    assert (result["status"], result["samples"], result["attempt"]) == ("completed", 80, 1)
    assert result["metrics"]["final_loss"] < result["metrics"]["loss_before"]
    assert {"final_loss", "final_accuracy", "training_time"} <= result["metrics"].keys()
    assert load(farm.files[UPLOAD]).keys() == {n for n in _tiny_names(tmp_path) if n != models.TIED}
    assert farm.of("heartbeat")[0]["resources"]["ram"]["total"] > 0
    assert not [path for path in one.folder.path.iterdir() if path.is_dir()]  # nothing is left of it here


def _tiny_names(tmp_path: Path) -> set[str]:
    return set(models.from_registry(tiny_farm.model(tmp_path / "again")).model.state_dict())


async def test_a_reconnect_in_mid_training_goes_on_where_it_is(farm: PlayedFarm, tmp_path: Path):
    farm.assign(steps=100_000)
    async with working(farm, tmp_path) as one:
        await farm.hears("task_progress")
        before, running = one.session.task, one.worker.work
        await farm.drop()
        await eventually(lambda: farm.opened >= 2 and len(farm.of("task_request")) >= 2)
        step = farm.of("task_progress")[-1]["metrics"]["step"]
        count = len(farm.of("task_progress"))
        after = await farm.hears("task_progress", count + 1)
        assert one.worker.work is running and one.session.task.key == before.key
        assert after["metrics"]["step"] > step and one.session.task.resumed
        await farm.control("stop")
        result = await farm.hears("task_result")
    assert result["status"] == "stopped" and 0 < result["samples"] < 400_000


async def test_the_training_goes_on_while_the_farm_is_away_and_the_result_arrives_later(
    farm: PlayedFarm, tmp_path: Path
):
    farm.assign(steps=300, upload=None)
    async with working(farm, tmp_path) as one:
        await farm.hears("task_progress")
        await farm.away()
        await eventually(lambda: one.session.results, 20)
        assert not farm.of("task_result")
        await farm.back()
        assert (await farm.hears("task_result"))["status"] == "completed"


async def test_pause_rests_resume_goes_on_and_both_survive_a_reconnect(farm: PlayedFarm, tmp_path: Path):
    farm.assign(steps=100_000)
    async with working(farm, tmp_path, checkpoint_seconds=1000) as one:
        await farm.hears("task_progress")
        farm.paused = True
        await farm.control("pause")
        at = await rests(farm, one, 0)
        await farm.drop()
        await eventually(lambda: len(farm.of("task_request")) >= 2)
        at = await rests(farm, one, at)
        beats = len(farm.of("heartbeat"))
        await farm.hears("heartbeat", beats + 2)  # the connection lives meanwhile
        await farm.control("resume")
        await eventually(lambda: farm.of("task_progress")[-1]["metrics"]["step"] > at, 10)
        await farm.control("stop")
        assert (await farm.hears("task_result"))["status"] == "stopped"


async def rests(farm: PlayedFarm, one: Running, least: int) -> int:
    """The step at which it rests: saved there, and an eye kept on it for longer than it takes to tell of progress."""
    await eventually(lambda: one.worker.work and one.worker.work.control.paused)
    last = await eventually(lambda: [s for s in saved_steps(one.folder.path) if s >= least][-1:])
    await asyncio.sleep(1.2)
    assert farm.of("task_progress")[-1]["metrics"]["step"] == saved_steps(one.folder.path)[-1] >= last[0]
    return saved_steps(one.folder.path)[-1]


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.rglob("step-*.json"))


async def test_a_result_is_repeated_until_it_is_acknowledged(farm: PlayedFarm, tmp_path: Path):
    farm.assign()
    farm.acknowledges = False
    async with working(farm, tmp_path) as one:
        await farm.hears("task_result")
        await farm.drop()
        await farm.hears("task_result", 3)
        assert len({json.dumps(message["metrics"]) for message in farm.of("task_result")}) == 1
        farm.acknowledges = True
        await farm.drop()
        await eventually(lambda: one.worker.succeeded, 10)
    assert [method for method, _ in farm.asked].count("PUT") == 1


async def test_who_dies_between_the_result_and_its_acknowledgement_tells_it_again(farm: PlayedFarm, tmp_path: Path):
    farm.assign()
    farm.acknowledges = False
    for _ in range(2):
        async with working(farm, tmp_path):
            await farm.hears("task_result", len(farm.of("task_result")) + 1)
    one, other = farm.of("task_result")[0], farm.of("task_result")[-1]
    assert one["metrics"] == other["metrics"] and one["samples"] == other["samples"] == 80


async def test_a_gateway_that_is_away_for_a_moment_costs_nothing(farm: PlayedFarm, tmp_path: Path):
    farm.assign()
    farm.refuses_files = 2
    async with working(farm, tmp_path):
        assert (await farm.hears("task_result"))["status"] == "completed"
    assert UPLOAD in farm.files


async def test_a_stop_ends_a_download_too(farm: PlayedFarm, tmp_path: Path):
    farm.assign()
    farm.refuses_files = 10**6
    async with working(farm, tmp_path) as one:
        await eventually(lambda: any("again in" in line for line in one.lines), 10)
        await farm.control("stop")
        assert (await farm.hears("task_result"))["status"] == "stopped"


async def test_a_task_that_went_to_another_is_left_for_the_new_one(farm: PlayedFarm, tmp_path: Path):
    farm.assign(steps=100_000)
    async with working(farm, tmp_path):
        await farm.hears("task_progress")
        farm.tasks.clear()
        farm.assign("task_2", upload="/api/tasks/task_2/checkpoints/0?round=0")
        await farm.drop()
        result = await farm.hears("task_result")
    assert (result["task_id"], result["status"]) == ("task_2", "completed")
    assert not [message for message in farm.of("task_result") if message["task_id"] == "task_1"]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"dataset": "imagenet"}, "does not have dataset"),
        ({"model": "model_gone"}, "404"),
        ({"upload": "https://evil.example/steal"}, "not a checkpoint of this village"),
        ({"upload": "/v1/users/user_1"}, "not a checkpoint of this village"),
        ({"checkpoint": "/api/tasks/../../etc/passwd"}, "not a checkpoint of this village"),
        ({"checkpoint": "/api/tasks/task_1/checkpoint?round=9"}, "404"),
        ({"model": "../../v1/users"}, "not valid"),
        ({"batch_size": 10**30}, "not valid"),
    ],
)
async def test_what_cannot_be_done_is_a_failed_result_in_words(farm: PlayedFarm, tmp_path: Path, config, says):
    farm.assign(**config)
    async with working(farm, tmp_path):
        result = await farm.hears("task_result")
    assert result["status"] == "failed" and says in result["error"] and str(tmp_path) not in result["error"]
    assert not any(method == "PUT" for method, _ in farm.asked)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x04\x95cos\nsystem\n", b"x" * 10_000])
async def test_a_poisoned_model_or_checkpoint_is_a_failed_result(farm: PlayedFarm, tmp_path: Path, content):
    farm.models["model_tiny"] = content
    farm.assign()
    async with working(farm, tmp_path):
        assert (await farm.hears("task_result"))["status"] == "failed"


async def test_hostile_messages_do_nothing_and_the_next_task_is_done(farm: PlayedFarm, tmp_path: Path):
    marker = tmp_path / "ran"
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    async with working(farm, tmp_path) as one:
        await farm.hears("task_request")
        for message in (
            "", "x", "[" * 50_000, "1e999", '{"type": "task"}', '{"type": "exec"}', {"type": "eval", "code": code},
            {"type": "control", "action": "stop", "task_id": "../../../etc"},
            {"type": "control", "action": code, "task_id": "task_1"},
            {"type": "task_result_ack", "task_id": "../..", "received": True},
            {"type": "error", "code": "\x1b[2J", "message": code},
            {"type": "task", "data": {"id": "../../" + "x" * 50, "type": code, "config": {}}},
            {"type": "task", "data": {"id": "../../../tmp/x", "type": "training", "config": {"model": code}}},
            {"type": "task", "data": {"id": "a", "type": "training", "config": {"epochs": 1e300}}},
            {"type": "task", "data": {"id": 7, "type": "training"}},
        ):  # fmt: skip
            await farm.send(message)
        farm.assign(name=code, url="file:///etc/passwd", version=code, code=code, **{"__class__": code})
        await farm.send({"type": "task", "data": farm.tasks[0]})
        await eventually(lambda: UPLOAD in farm.files, 20)
        await eventually(lambda: one.worker.succeeded)
        assert "\x1b" not in "".join(one.lines)
    assert not marker.exists() and farm.opened == 1
    assert set(os.listdir(tmp_path)) == {"worker", "tiny.jsonl"}  # and the ids that look like paths were none
    assert {path for _, path in farm.asked} == {UPLOAD}


async def test_two_ranks_begin_alike_and_the_average_of_their_weights_is_the_next_round(
    farm: PlayedFarm, tmp_path: Path
):
    """The model is fresh, so all that they share is the seed."""
    common = {"model": None, "dataset": "sums", "batch_size": 1, "steps": 1, "learning_rate": 1e-9, "world_size": 2,
              "rounds": 2, "distributed": True}  # fmt: skip
    uploads = [f"/api/tasks/task_1/checkpoints/{rank}?round=0" for rank in range(2)]
    results = []
    for rank in range(2):
        farm.assign(rank=rank, upload=uploads[rank], **common)
        async with working(farm, tmp_path / str(rank), f"worker_{rank}"):
            results.append(await farm.hears("task_result", rank + 1, 40))
    one, other = (load(farm.files[path]) for path in uploads)
    begun = models.fresh(tokenizer(), 7).model.state_dict()
    for name in one:  # a step of 1e-9 moves nothing far
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-6)
        torch.testing.assert_close(one[name], begun[name], rtol=0, atol=1e-6)
    total = sum(result["samples"] for result in results)
    mean = {
        n: sum(load(farm.files[p])[n] * r["samples"] / total for p, r in zip(uploads, results, strict=True))
        for n in one
    }
    farm.files["/api/tasks/task_1/checkpoint?round=1"] = save(mean)
    last = "/api/tasks/task_1/checkpoints/0?round=1"
    farm.assign(rank=0, round=1, checkpoint="/api/tasks/task_1/checkpoint?round=1", upload=last, **common)
    async with working(farm, tmp_path / "0", "worker_0"):
        assert (await farm.hears("task_result", 3, 40))["status"] == "completed"
    final = load(farm.files[last])
    assert all(torch.allclose(final[name], mean[name], atol=1e-6) for name in mean)


async def test_a_password_is_used_again_when_the_token_is_over(farm: PlayedFarm, tmp_path: Path):
    async with working(farm, tmp_path, credential=Credential(username="ann", password="right")):
        await farm.hears("task_request")
        farm.tokens = set()
        farm.assign()
        await farm.drop()
        assert (await farm.hears("task_result"))["status"] == "completed"


@pytest.mark.parametrize("credential", [Credential(api_key="ains_wrong"), Credential(username="ann", password="wrong")])
async def test_a_credential_that_is_refused_for_good_ends_the_worker(farm: PlayedFarm, tmp_path: Path, credential):
    made = Running(farm, tmp_path, credential=credential)
    with pytest.raises(Unauthenticated):
        await asyncio.wait_for(made.worker.run(), 10)
    await made.gateway.close()


async def test_once_ends_after_one_task(farm: PlayedFarm, tmp_path: Path):
    farm.assign()
    made = Running(farm, tmp_path, once=True)
    await asyncio.wait_for(made.worker.run(), 30)
    await made.gateway.close()
    assert made.worker.succeeded


# ---- a process of its own


async def process(farm: PlayedFarm, home: Path, *options: str) -> asyncio.subprocess.Process:
    environment = os.environ | {"VILLAGE_HOME": str(home), "VILLAGE_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "train.farm", "--url", farm.url, "--threads", "1", "--device", "cpu",
        f"--data=tiny={home / 'tiny.jsonl'}", "--checkpoint-seconds", "0.1", *options,
        cwd=Path(__file__).parents[3], env=environment, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip


async def test_a_killed_worker_goes_on_from_its_own_checkpoint(farm: PlayedFarm, tmp_path: Path):
    tiny_farm.text(tmp_path / "tiny.txt")
    farm.assign(steps=1_000_000)
    first = await process(farm, tmp_path)
    try:
        await farm.hears("task_progress", 1, 60)
        step = (await eventually(lambda: saved_steps(tmp_path), 10))[-1]
    finally:
        first.send_signal(signal.SIGKILL)
        await first.wait()
    client = farm.got[0]["client_id"]
    farm.got.clear()
    again = await process(farm, tmp_path, "--once")
    try:
        resumed = await farm.hears("task_progress", 1, 60)
        await farm.control("stop")
        result = await farm.hears("task_result", 1, 20)
        out, _ = await asyncio.wait_for(again.communicate(), 30)
    finally:
        if again.returncode is None:
            again.kill()
    assert farm.got[0]["client_id"] == client  # kept in its home
    assert resumed["metrics"]["step"] > step > 0 and b"going on from step" in out
    assert result["samples"] >= 4 * step and again.returncode == 1  # stopped is not completed


async def test_a_polite_end_saves_and_keeps_the_task(farm: PlayedFarm, tmp_path: Path):
    tiny_farm.text(tmp_path / "tiny.txt")
    farm.assign(steps=1_000_000)
    one = await process(farm, tmp_path, "--checkpoint-seconds", "1000")
    await farm.hears("task_progress", 1, 60)
    one.terminate()
    out, _ = await asyncio.wait_for(one.communicate(), 30)
    assert one.returncode == 0 and b"is left where it is" in out and not farm.of("task_result")
    assert saved_steps(tmp_path)


async def test_a_bad_credential_is_one_line_and_status_1(farm: PlayedFarm, tmp_path: Path):
    tiny_farm.text(tmp_path / "tiny.txt")
    farm.keys = set()
    one = await process(farm, tmp_path)
    out, _ = await asyncio.wait_for(one.communicate(), 60)
    assert one.returncode == 1 and out.decode().splitlines()[-1].startswith("village: the village does not take")
    assert KEY.encode() not in out


def test_the_command_line_hands_everything_on_and_no_secret(monkeypatch, tmp_path: Path):
    started = []
    monkeypatch.setattr(os, "execve", lambda *given: started.append(given))
    words = ["worker", "--url", "http://h:1", "--data", "a=b", "--data", "c=d", "--once", "--max-memory-mb", "900"]
    told = parser().parse_args([*words, "--api-key", KEY, "--token", "jwt"])
    told.action(Settings(home=tmp_path), told)
    [(_, command, environment)] = started
    assert command[1:5] == ["-m", "train.farm", "--url", "http://h:1"]
    assert {"--data=a=b", "--data=c=d", "--once", "--max-memory-mb=900"} < set(command)
    assert KEY not in " ".join(command) and "jwt" not in " ".join(command)
    assert (environment["VILLAGE_API_KEY"], environment["VILLAGE_TOKEN"]) == (KEY, "jwt")
    again = options(argparse.ArgumentParser()).parse_args(command[3:])
    assert again.data == ["a=b", "c=d"] and again.once and again.max_memory_mb == 900


# ---- who it is


def test_a_client_id_is_made_once_for_a_home_and_machine(tmp_path: Path):
    made = client_id(tmp_path)
    assert client_id(tmp_path) == made != client_id(tmp_path / "other")
    assert client_id(tmp_path, "my.box-1") == "my.box-1"
    for bad in ("../x", "a/b", "", "x" * 65, "a b", ".hidden"):
        if bad:
            with pytest.raises(Invalid):
                client_id(tmp_path, bad)


def test_one_worker_at_a_time_has_a_folder(tmp_path: Path):
    first = Folder(tmp_path, "w")
    first.lock()
    with pytest.raises(Conflict):
        Folder(tmp_path, "w").lock()
    for bad in ("", "..", "../x", "a" * 31):
        with pytest.raises(ValueError):
            first.forget(bad)


def test_addresses_are_this_gateways_whatever_a_task_says():
    gateway = Gateway.__new__(Gateway)
    gateway.url = "https://village.example:8443"
    good = "/api/tasks/task_1/checkpoints/0?round=3"
    assert gateway.address(good) == gateway.url + good
    assert gateway.address("http://127.0.0.1:8080" + good) == gateway.url + good  # the path alone counts
    bad_ones = (
        "//evil.example/api/tasks/x", "@evil.example/api/tasks/x", "/api/tasks/../users", "/api/tasks/a/%2e%2e/b",
        "/api/users", "file:///api/tasks/x", "/api/tasks/a b", "/api/tasks/a#b", "", "/api/tasks/.", "\n",
    )  # fmt: skip
    for bad in bad_ones:
        with pytest.raises(Invalid):
            gateway.address(bad)


def test_the_farm_is_on_the_gateway_unless_it_is_named():
    assert farm_url("https://village.example") == "wss://village.example/farm/ws"
    assert farm_url("http://127.0.0.1:8080/base") == "ws://127.0.0.1:8080/base/farm/ws"
    for bad in ("ftp://x", "village.example", "http://"):
        with pytest.raises(Invalid):
            check_url(bad, ("http", "https"))


def test_nothing_here_can_unpickle_or_run_what_it_is_sent():
    for file in (Path(models.__file__).parent).glob("*.py"):
        text = file.read_text()
        for word in ("import pickle", "torch.load", " eval(", " exec(", "trust_remote_code", "importlib", "shell=True"):
            assert word not in text, f"{file.name} has {word}"


def test_weights_of_an_upload_load_where_the_registrys_do(tmp_path: Path):
    folder = tiny_farm.model(tmp_path / "model")
    assets = models.from_registry(folder)
    models.save_weights(assets.model, tmp_path / "up.safetensors", {"step": "3"})
    theirs, ours = load_file(folder / "model.safetensors"), load_file(tmp_path / "up.safetensors")
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)
