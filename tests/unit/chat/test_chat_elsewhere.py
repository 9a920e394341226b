"""The engine that is somebody else's server: tested against our own OpenAI dialect, in process."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_contract import GREEDY, eventually, reply, turns
from scripted_engine import ScriptedEngine

from cluster.errors import Invalid, LimitExceeded, NotFound, Unavailable
from serve_apps.chat.engine import Delta, Finish, ModelRef, Sampling
from serve_apps.chat.loops import across
from serve_apps.chat.openai_engine import OpenAIEngine
from serve_apps.chat.sources import configured, is_registry_name
from serve_apps.dialects.openai.chunks import chunks, completion
from serve_apps.dialects.openai.schemas import CompletionRequest

HERE = ModelRef("model_1", "scripted", "", "sha256:abc", 256)
THERE = ModelRef("model_2", "there", "openai:http://there/v1")


@pytest.fixture
async def engine() -> AsyncIterator[OpenAIEngine]:
    """An OpenAIEngine before a server made of our own schemas, chunks and engine."""
    behind = ScriptedEngine()

    async def serve(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"data": [{"id": "scripted"}]})
        body = CompletionRequest.model_validate(json.loads(request.content))
        try:
            steps = behind.generate(HERE, body.turns(), body.sampling())
            sent = [chunk async for chunk in chunks({"id": "x"}, steps, include_usage=True)]
        except Invalid as error:
            return httpx.Response(400, json={"error": {"message": error.message}})
        return httpx.Response(200, content=b"".join(sent))

    made = OpenAIEngine("secret", httpx.AsyncClient(transport=httpx.MockTransport(serve)))
    yield made
    await made.close()


async def test_another_server_gives_the_same_reply(engine: OpenAIEngine):
    here = await reply(ScriptedEngine(), HERE, turns(1), GREEDY)
    there = await reply(engine, THERE, turns(1), GREEDY)
    assert there == here


async def test_its_probabilities_are_measured_too(engine: OpenAIEngine):
    measured = Sampling(0.0, 12, ignore_eos=True, measure=True)
    _, here = await reply(ScriptedEngine(), HERE, turns(1), measured)
    _, there = await reply(engine, THERE, turns(1), measured)
    assert there.mean_probability == pytest.approx(here.mean_probability)


async def test_its_refusal_is_ours(engine: OpenAIEngine):
    with pytest.raises(Invalid, match="context"):
        await reply(engine, THERE, turns(1, size=300), GREEDY)


@pytest.mark.parametrize(
    ("status", "error"), [(404, NotFound), (429, LimitExceeded), (401, Unavailable), (500, Unavailable)]
)
async def test_its_statuses_become_errors(status: int, error: type[Exception]):
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text="no json"))
    engine = OpenAIEngine(client=httpx.AsyncClient(transport=transport))
    with pytest.raises(error):
        await reply(engine, ModelRef("m", "m", "openai:http://there/v1#m"), turns(1), GREEDY)


async def test_a_server_that_is_away_is_unavailable():
    def away(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    engine = OpenAIEngine(client=httpx.AsyncClient(transport=httpx.MockTransport(away)))
    with pytest.raises(Unavailable):
        await reply(engine, THERE, turns(1), GREEDY)


async def test_the_setting_names_a_model_in_four_ways(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 128}')
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert is_registry_name("seedling") and await configured("seedling") is None
    folder = await configured(str(tmp_path))
    assert folder is not None
    assert (folder.context_length, folder.name, folder.path) == (128, tmp_path.name, str(tmp_path))
    remote = await configured("openai:http://127.0.0.1:9/v1#llama")
    assert remote is not None
    assert (remote.name, remote.path) == ("llama", "openai:http://127.0.0.1:9/v1#llama")
    assert not is_registry_name("owner/model")


async def test_a_changed_checkpoint_is_another_model(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    before = await configured(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    after = await configured(str(tmp_path))
    assert before is not None and after is not None and before.key != after.key


@pytest.fixture
def other_loop():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def test_a_stream_crosses_loops(other_loop: asyncio.AbstractEventLoop):
    engine = ScriptedEngine()
    steps = [step async for step in across(other_loop, lambda: engine.generate(HERE, turns(1), GREEDY))]
    assert len(steps) == 13 and isinstance(steps[-1], Finish)
    with pytest.raises(Invalid):
        _ = [step async for step in across(other_loop, lambda: engine.generate(HERE, [], GREEDY))]


async def test_closing_one_end_closes_the_other(other_loop: asyncio.AbstractEventLoop):
    engine = ScriptedEngine()
    steps = across(other_loop, lambda: engine.generate(HERE, turns(1), Sampling(0.0, 200)))
    assert isinstance(await anext(steps), Delta)
    await steps.aclose()
    await eventually(lambda: engine.running == 0)


def test_an_impossible_token_has_a_json_number():
    from serve_apps.chat.engine import TokenLogprob

    finish = Finish("stop", 1, 1)
    body: dict[str, Any] = json.loads(completion({"id": "x"}, "a", [TokenLogprob("a", float("-inf"))], finish))
    assert body["choices"][0]["logprobs"]["content"][0]["logprob"] == -9999.0
