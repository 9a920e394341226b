"""The documents, endpoint by endpoint: what is built answers in the shape of its example, what is not says 501."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from contract.shapes import mismatches
from http_harness import ADMIN, PASSWORD, Client
from scripted_engine import ScriptedEngine
from test_http_chat import ASK, engine  # noqa: F401 - a fixture

HERE = Path(__file__).parent
EXAMPLES: dict[str, Any] = json.loads((HERE.parents[1] / "contract" / "examples.json").read_text())
LATER = {  # endpoints of a document that a later release brings: the only ones that may answer 501
    "aivillage": {
        "GET /v1/agents", "POST /v1/agents/{agent_id}/message", "POST /v1/agents/conversation", "GET /v1/p2p/status",
        "POST /v1/p2p/discover", "POST /v1/p2p/message", "GET /v1/fog/nodes", "POST /v1/fog/jobs",
        "GET /v1/fog/jobs/{job_id}/status", "POST /v1/upload", "GET /v1/files",
    },
    "orchestra": {"POST /chat/v2/chat", "WS /chat/ws/{client_id}/{session_id}"},
    "forge": {key.removeprefix("forge ") for key in EXAMPLES if key.startswith("forge ")}
    - {"GET /health", "GET /status"},
}  # fmt: skip
NOT_BUILT = {f"{system} {endpoint}" for system, endpoints in LATER.items() for endpoint in endpoints}
ERROR_CODE = {
    "aivillage": lambda body: body["error_code"], "aifarm": lambda body: body["error"]["code"],
    "ains": lambda body: body["error"]["code"], "orchestra": lambda body: body["error"]["code"],
    "forge": lambda body: body["code"],
}  # fmt: skip


def placed(path: str, **parts: str) -> str:
    return path.format_map({**dict.fromkeys(path.replace("}", "{").split("{")[1::2], "none"), **parts})


def unlike(key: str, answer: httpx.Response) -> list[str]:
    """What is wrong with an answer, beside the example of the endpoint."""
    spec = EXAMPLES[key]
    good = {spec["status"], 201} if spec["method"] == "POST" else {spec["status"]}
    if answer.status_code not in good:
        return [f"{answer.status_code} {answer.text[:200]}"]
    return mismatches(spec["response"], answer.json())


def test_the_table_of_what_is_not_built_names_documented_endpoints_only():
    assert len(EXAMPLES) == 96 and not NOT_BUILT - EXAMPLES.keys()


async def test_every_documented_endpoint_answers_something_documented(client: Client, admin: dict[str, str]):
    wrong = []
    for key, spec in EXAMPLES.items():
        if spec["method"] == "WS":
            continue
        body = spec["request"] if spec["method"] not in ("GET", "DELETE") else None
        answer = await client.request(spec["method"], placed(spec["path"]), headers=admin, json=body)
        status = answer.status_code
        if status in (405, 500) or (status == 501) != (key in NOT_BUILT):
            wrong.append(f"{key}: {status}, and the table LATER says {key in NOT_BUILT}")
        elif status >= 400 and not ERROR_CODE[spec["system"]](answer.json()):
            wrong.append(f"{key}: {answer.text}")
    assert not wrong, "\n".join(wrong)


def test_every_built_endpoint_is_held_against_its_example():
    told = "".join(file.read_text() for file in sorted(HERE.glob("test_*.py")))
    missing = [key for key in EXAMPLES if key not in NOT_BUILT and f'"{key}"' not in told]
    assert not missing, f"built, and no test compares it with its example: {missing}"


async def test_signing_in_has_the_shape_of_its_examples(client: Client, admin):
    login = await client.post("/auth/token", json={"username": ADMIN, "password": PASSWORD})
    assert not unlike("aivillage POST /auth/token", login)
    refreshed = await client.post("/auth/refresh", json={"refresh_token": login.json()["refresh_token"]})
    assert not unlike("aivillage POST /auth/refresh", refreshed)


@pytest.mark.parametrize(
    "key",
    [
        "aivillage GET /healthz", "aivillage GET /", "orchestra GET /health", "forge GET /health",
        "orchestra GET /readiness", "forge GET /status", "ains GET /ains/version", "ains GET /ains/routing/strategies",
    ],
)  # fmt: skip
async def test_what_the_village_says_of_itself_has_the_shape_of_its_example(client: Client, admin, key: str):
    assert not unlike(key, await client.get(EXAMPLES[key]["path"], headers=admin))


async def test_metrics_are_prometheus_text(client: Client):
    assert EXAMPLES["orchestra GET /metrics"]["response"] is None
    answer = await client.get("/metrics")
    assert (
        answer.headers["content-type"].startswith("text/plain") and "# TYPE http_requests_total counter" in answer.text
    )


async def test_chat_has_the_shape_of_its_example(client: Client, admin, engine: ScriptedEngine):  # noqa: F811
    assert not unlike("aivillage POST /v1/chat", await client.post("/v1/chat", json=ASK, headers=admin))


async def test_the_socket_greets_in_the_shape_of_its_example(gateway, admin):
    sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    await received.put({"type": "websocket.connect"})
    scope = {
        "type": "websocket", "path": "/ws", "raw_path": b"/ws", "query_string": b"", "root_path": "", "scheme": "ws",
        "headers": [(b"authorization", admin["Authorization"].encode())], "client": ("192.0.2.1", 1),
        "server": ("village", 80), "subprotocols": [], "http_version": "1.1",
    }  # fmt: skip
    serving = asyncio.create_task(gateway(scope, received.get, sent.put))
    assert (await asyncio.wait_for(sent.get(), 5))["type"] == "websocket.accept"
    greeting = json.loads((await asyncio.wait_for(sent.get(), 5))["text"])
    assert not mismatches(EXAMPLES["aivillage WS /ws"]["request"], greeting)
    await received.put({"type": "websocket.disconnect", "code": 1000})
    await asyncio.wait_for(serving, 5)
