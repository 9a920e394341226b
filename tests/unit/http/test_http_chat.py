"""Chat over HTTP, in process: AIVillage's `/v1/chat` and OpenAI's `/openai/v1`."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from engine_contract import eventually
from http_harness import Client
from scripted_engine import ScriptedEngine

from cluster.errors import Unavailable
from serve_apps.chat.service import Chat
from serve_apps.core import Core
from serve_apps.gateway import Gateway
from train.models import Models
from train.registry import Model, ModelState

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ASK = {"model_id": "model_tiny", "message": "hello", "parameters": {"temperature": 0.0, "max_tokens": 6}}
COMPLETE = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 6}
URL = "/openai/v1/chat/completions"


@pytest.fixture
async def engine(core: Core) -> ScriptedEngine:
    made = ScriptedEngine()
    models = Models(core.store, core.clock)
    await core.store.create(
        Model(
            model_id="model_tiny", name="tiny", owner="user_x", public=True, state=ModelState.COMPLETED, path="/none",
            digest="sha256:0123456789abcdef", context_length=256, created_at=NOON,
        )
    )  # fmt: skip
    core.models, core.chat = models, Chat(core.store, models, made, core.clock)
    return made


def data_lines(text: str) -> list[Any]:
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_chat_answers_with_usage_and_measured_metadata(client: Client, admin: dict[str, str], engine):
    answer = (await client.post("/v1/chat", json=ASK, headers=admin)).json()
    data = answer["data"]
    assert answer["success"] and answer["message"] == "Chat completed successfully"
    assert data["usage"] == {"prompt_tokens": 8, "completion_tokens": 6, "total_tokens": 14}
    assert data["conversation_id"].startswith("conv_") and len(data["response"]) == 6
    assert 0 < data["metadata"]["confidence_score"] <= 1
    assert data["metadata"]["model_version"] == "0123456789ab"


async def test_a_chat_stream_says_the_same_and_ends_with_usage(client: Client, admin: dict[str, str], engine):
    whole = (await client.post("/v1/chat", json=ASK, headers=admin)).json()["data"]
    response = await client.post("/v1/chat", json=ASK | {"stream": True}, headers=admin)
    assert response.headers["content-type"].startswith("text/event-stream")
    *deltas, last = data_lines(response.text)
    assert "".join(delta["delta"] for delta in deltas) == last["response"] == whole["response"]
    assert last["usage"] == whole["usage"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (ASK | {"model_id": "model_none"}, 404, "RESOURCE_NOT_FOUND"),
        (ASK | {"model_id": ""}, 503, "SERVICE_UNAVAILABLE"),  # the seedling is not there yet
        (ASK | {"message": ""}, 400, "VALIDATION_ERROR"),
        (ASK | {"conversation_id": "a b"}, 400, "VALIDATION_ERROR"),
        (ASK | {"parameters": {"temperature": -1}}, 400, "VALIDATION_ERROR"),
        (ASK | {"message": "x" * 300}, 400, "VALIDATION_ERROR"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_chat_refuses_in_the_villages_words(
    client: Client, admin: dict[str, str], engine, body: dict[str, Any], status: int, code: str, stream: bool
):
    response = await client.post("/v1/chat", json=body | {"stream": stream}, headers=admin)
    assert (response.status_code, response.json()["error_code"]) == (status, code)


async def test_somebody_elses_conversation_is_404(
    client: Client, admin: dict[str, str], user: Callable[..., Any], engine
):
    ann, bob = await user("ann"), await user("bob")
    mine = (await client.post("/v1/chat", json=ASK, headers=ann)).json()["data"]["conversation_id"]
    assert (await client.post("/v1/chat", json=ASK | {"conversation_id": mine}, headers=bob)).status_code == 404


async def test_a_completion_is_openais(client: Client, admin: dict[str, str], engine):
    answer = (await client.post(URL, json=COMPLETE | {"logprobs": True, "top_logprobs": 2}, headers=admin)).json()
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl")
    assert choice["message"]["role"] == "assistant" and choice["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 8, "completion_tokens": 6, "total_tokens": 14}


async def test_a_streamed_completion_is_the_same_text(client: Client, admin: dict[str, str], engine):
    whole = (await client.post(URL, json=COMPLETE, headers=admin)).json()["choices"][0]["message"]["content"]
    body = COMPLETE | {"stream": True, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 1}
    *chunks, last = data_lines((await client.post(URL, json=body, headers=admin)).text)
    deltas = [chunk["choices"][0] for chunk in chunks]
    assert deltas[0]["delta"]["role"] == "assistant"
    assert "".join(delta["delta"].get("content", "") for delta in deltas) == whole
    assert [delta["finish_reason"] for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == [] and last["usage"]["total_tokens"] == 14
    entries = [entry for delta in deltas for entry in (delta["logprobs"] or {"content": []})["content"]]
    assert "".join(entry["token"] for entry in entries) == whole


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"model": "none"}, 404, "model_not_found", None),
        ({"model": ""}, 503, "model_not_ready", None),
        ({"n": 2}, 400, "invalid_request", "n"),
        ({"messages": []}, 400, "invalid_request", "messages"),
        ({"stop": ["a", "b", "c", "d", "e"]}, 400, "invalid_request", "stop"),
        ({"tools": [{"type": "function"}]}, 400, "invalid_request", "tools.0.function"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "invalid_request", "messages"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, 400, "context_length_exceeded", "messages"),
        ({"response_format": {"type": "json_schema"}}, 400, "invalid_request", "response_format"),
    ],
)
async def test_a_bad_completion_is_refused_in_openais_words(
    client: Client, admin: dict[str, str], engine, change: dict[str, Any], status: int, code: str, param: str | None
):
    response = await client.post(URL, json=COMPLETE | change, headers=admin)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["message"] and error["type"]


async def test_no_credential_is_401_in_openais_words(client: Client, engine):
    response = await client.post(URL, json=COMPLETE)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")


async def test_models_are_listed_and_found_by_id_or_name(client: Client, admin: dict[str, str], engine):
    listed = (await client.get("/openai/v1/models", headers=admin)).json()
    assert [model["id"] for model in listed["data"]] == ["model_tiny"]
    for name in ("model_tiny", "tiny"):
        assert (await client.get(f"/openai/v1/models/{name}", headers=admin)).json()["id"] == "model_tiny"
    assert (await client.get("/openai/v1/models/none", headers=admin)).status_code == 404


async def test_an_engine_that_dies_in_mid_stream_ends_the_stream_with_an_error(
    client: Client, admin: dict[str, str], engine: ScriptedEngine
):
    engine.failure, engine.fails_after = Unavailable("the engine died"), 3
    response = await client.post(URL, json=COMPLETE | {"stream": True}, headers=admin)
    last = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")][-1]
    assert last["error"]["message"] == "the engine died"
    engine.fails_after = 0
    assert (await client.post(URL, json=COMPLETE | {"stream": True}, headers=admin)).status_code == 503


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat", URL])
async def test_a_client_who_goes_away_aborts_the_request(
    gateway: Gateway, admin: dict[str, str], engine: ScriptedEngine, path: str, stream: bool
):
    engine.gate = asyncio.Event()  # never set: without the abort this would wait for ever
    body = json.dumps((COMPLETE if path == URL else ASK) | {"stream": stream}).encode()
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": body, "more_body": False})
    headers = [(b"authorization", admin["Authorization"].encode()), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers,
        "client": ("192.0.2.1", 1), "server": ("village", 80),
    }  # fmt: skip

    async def send(_: Any) -> None:
        return None

    request = asyncio.create_task(gateway(scope, messages.get, send))
    await eventually(lambda: engine.running == 1)
    messages.put_nowait({"type": "http.disconnect"})
    await asyncio.wait_for(request, 2)
    assert engine.running == 0
