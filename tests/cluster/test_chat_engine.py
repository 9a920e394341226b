"""The real vLLM engine: loads, answers, aborts, is killed and comes back. Loading takes most of this file's minute."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from checkpoints import tiny_checkpoint
from engine_contract import Contract, eventually, reply

from cluster.errors import Invalid, Unavailable
from cluster.settings import ROOT
from serve_apps.chat.engine import ModelRef, Sampling, Turn
from serve_apps.chat.vllm_engine import VllmEngine

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

KV_MB = 64
ROOM_FOR_ONE_MB = 900
HELLO = [Turn("user", "Hello there")]


def ref(folder: Path, name: str) -> ModelRef:
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return ModelRef(f"model_{name}", name, str(folder), "sha256:" + name, 256, size)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelRef, ModelRef]:
    folders = [tiny_checkpoint(tmp_path_factory.mktemp(name), seed) for seed, name in enumerate(("one", "two"))]
    return ref(folders[0], "one"), ref(folders[1], "two")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    built = VllmEngine(memory_mb=ROOM_FOR_ONE_MB, kv_mb=KV_MB)
    yield built
    await built.close()


async def test_concurrent_first_requests_share_one_load(engine: VllmEngine, models: tuple[ModelRef, ModelRef]):
    assert engine.loaded() == []
    first = [asyncio.create_task(reply(engine, models[0], HELLO, Sampling(0.0, 4))) for _ in range(3)]
    await eventually(lambda: list(engine.progress) == [models[0].model_id])
    answers = await asyncio.gather(*first)
    assert len({text for text, _ in answers}) == 1
    (loaded,) = engine.loaded()
    assert loaded.model_id == models[0].model_id
    assert loaded.memory_mb > KV_MB  # measured: weights, cache and the process itself
    assert engine.progress == {}


class TestVllmKeepsTheContract(Contract):
    """Every promise of `ChatEngine`, by the real engine."""

    @pytest.fixture
    def model(self, models: tuple[ModelRef, ModelRef]) -> ModelRef:
        return models[0]


async def test_a_schema_is_followed(engine: VllmEngine, models: tuple[ModelRef, ModelRef]):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    text, _ = await reply(engine, models[0], HELLO, Sampling(0.0, 60, json_schema=schema))
    assert isinstance(json.loads(text)["ok"], bool)


async def test_a_prompt_that_cannot_fit_is_invalid(engine: VllmEngine, models: tuple[ModelRef, ModelRef]):
    with pytest.raises(Invalid, match="context"):
        await reply(engine, models[0], [Turn("user", "x" * 300)], Sampling())


async def test_a_killed_engine_fails_its_requests_and_serves_the_next(
    engine: VllmEngine, models: tuple[ModelRef, ModelRef]
):
    before, _ = await reply(engine, models[0], HELLO, Sampling(0.0, 8, ignore_eos=True))
    (loaded,) = engine.loaded()
    running = asyncio.create_task(reply(engine, models[0], HELLO, Sampling(0.0, None, ignore_eos=True)))
    await eventually(lambda: engine.loaded()[0].running > 0)
    for pid in loaded.pids:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(Unavailable):
        await asyncio.wait_for(running, 10)
    after, _ = await asyncio.wait_for(reply(engine, models[0], HELLO, Sampling(0.0, 8, ignore_eos=True)), 90)
    assert after == before
    assert engine.loaded()[0].pids != loaded.pids


async def test_the_least_recently_used_model_leaves_for_another(engine: VllmEngine, models: tuple[ModelRef, ModelRef]):
    old = await engine.load(models[0])
    async with aclosing(engine.generate(models[0], HELLO, Sampling(0.0, 200, ignore_eos=True))) as busy:
        await anext(busy)
        with pytest.raises(Unavailable, match="MB"):  # a model with running requests stays
            await reply(engine, models[1], HELLO, Sampling(0.0, 4))
    await eventually(lambda: engine.loaded()[0].running == 0)
    await reply(engine, models[1], HELLO, Sampling(0.0, 4))
    (new,) = engine.loaded()
    assert (old.model_id, new.model_id) == ("model_one", "model_two")
    assert not any(psutil.pid_exists(pid) for pid in old.pids)


HOST = """
import asyncio, sys
from serve_apps.chat.engine import ModelRef
from serve_apps.chat.vllm_engine import VllmEngine

async def main():
    loaded = await VllmEngine(900, 64).load(ModelRef("model_one", "one", sys.argv[1]))
    print("pids", *loaded.pids, flush=True)
    await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_an_engine_does_not_outlive_a_killed_replica(models: tuple[ModelRef, ModelRef], tmp_path: Path):
    script = tmp_path / "host.py"
    script.write_text(HOST)
    host = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        models[0].path,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert host.stdout is not None
    pids: list[int] = []
    async with asyncio.timeout(90):
        while not pids and (line := await host.stdout.readline()):  # the log goes there too
            pids = [int(pid) for pid in line.split()[1:]] if line.startswith(b"pids ") else []
    assert pids and all(psutil.pid_exists(pid) for pid in pids)
    host.kill()
    await host.wait()
    await eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids), within=10)
