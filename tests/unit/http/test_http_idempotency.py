"""`Idempotency-Key` over HTTP, in every dialect: done once, answered the same."""

import asyncio

import httpx
import pytest
from fastapi import APIRouter
from fastapi.responses import JSONResponse, StreamingResponse
from http_harness import Client

from cluster.tasks.service import Tasks
from serve_apps.core import Core
from serve_apps.dialects import DIALECTS
from serve_apps.gateway import build_gateway
from serve_apps.kit.dialect import Dialect
from serve_apps.scopes import SCOPES, SIGNED_IN

TASK = {"client_id": "app", "task_type": "sum", "capability_required": "sums:v1", "input_data": {"a": 1}}
CASES = {"AIVillage": "/v1", "AIFarm": "/api", "AINS": "/ains", "Orchestra": "/chat", "Forge": "/jobs"}


def key(headers: dict[str, str], value: str = "one") -> dict[str, str]:
    return headers | {"Idempotency-Key": value}


def counting(dialect: Dialect, calls: list[str]) -> Dialect:
    """The dialect with routes that count how often they ran."""
    prefix = CASES[dialect.tag]
    router = APIRouter(prefix=f"{prefix}/zz")

    @router.post("/count")
    async def count(body: dict) -> JSONResponse:
        calls.append(dialect.tag)
        return JSONResponse({"n": len(calls)}, 202, {"Location": "/there"})

    @router.post("/secret")
    async def secret() -> JSONResponse:
        calls.append(dialect.tag)
        return JSONResponse({"secret": "s3"}, 201, {"Cache-Control": "no-store"})

    @router.post("/broken")
    async def broken() -> None:
        calls.append(dialect.tag)
        raise ZeroDivisionError

    @router.post("/stream")
    async def stream() -> StreamingResponse:
        calls.append(dialect.tag)
        return StreamingResponse(iter(["data: a\n\n", "data: b\n\n"]), media_type="text/event-stream")

    fields = {name: getattr(dialect, name) for name in dialect.__dataclass_fields__}
    return Dialect(**fields | {"routers": (*dialect.routers, router)})


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def gateway(core: Core, calls: list[str], monkeypatch: pytest.MonkeyPatch):
    for tag, prefix in CASES.items():
        for name in ("count", "secret", "broken", "stream"):
            monkeypatch.setitem(SCOPES[tag], f"POST {prefix}/zz/{name}", SIGNED_IN)
    core.tasks = Tasks(core.store)
    return build_gateway(core, [counting(d, calls) if d.tag in CASES else d for d in DIALECTS])


@pytest.mark.parametrize("tag", CASES)
async def test_the_first_answer_comes_again_in_every_dialect(tag: str, client: Client, admin, user, calls):
    path, other = f"{CASES[tag]}/zz/count", await user()
    first = await client.post(path, json={"a": 1}, headers=key(admin))
    again = await client.post(path, json={"a": 1}, headers=key(admin))
    assert (first.status_code, again.status_code, calls) == (202, 202, [tag])
    assert first.json() == again.json() and again.headers["location"] == "/there"
    assert again.headers["idempotency-replayed"] == "true" and "idempotency-replayed" not in first.headers
    assert first.headers["x-request-id"] != again.headers["x-request-id"]
    changed = await client.post(path, json={"a": 2}, headers=key(admin))
    assert (changed.status_code, len(calls)) == (422, 1), changed.text
    assert (await client.post(path, json={"a": 1}, headers=key(other))).status_code == 202 and len(calls) == 2
    assert (await client.post(path, json={"a": 1}, headers=key(admin, "x" * 256))).status_code == 400


async def test_a_task_is_submitted_once_however_often_it_is_sent(client: Client, admin, core: Core):
    answers = await asyncio.gather(*(client.post("/ains/tasks", json=TASK, headers=key(admin)) for _ in range(8)))
    assert {answer.status_code for answer in answers} <= {201, 409} and [a.status_code for a in answers].count(201) == 1
    again = await client.post("/ains/tasks", json=TASK, headers=key(admin))
    first: httpx.Response = next(answer for answer in answers if answer.status_code == 201)
    assert again.json() == first.json()
    assert (await client.get("/ains/tasks", headers=admin)).json()["pagination"]["total"] == 1
    waiting = next((answer for answer in answers if answer.status_code == 409), None)
    assert waiting is None or "retry-after" in waiting.headers


async def test_a_secret_is_not_kept_and_a_stream_is(client: Client, admin, calls):
    assert (await client.post("/ains/zz/secret", headers=key(admin, "a"))).status_code == 201
    assert (await client.post("/ains/zz/secret", headers=key(admin, "a"))).status_code == 409
    first = await client.post("/ains/zz/stream", headers=key(admin, "b"))
    again = await client.post("/ains/zz/stream", headers=key(admin, "b"))
    assert first.text == again.text == "data: a\n\ndata: b\n\n" and len(calls) == 2


async def test_what_failed_on_our_side_may_be_tried_again(client: Client, admin, calls):
    for _ in range(2):
        assert (await client.post("/ains/zz/broken", headers=key(admin))).status_code == 500
    assert len(calls) == 2


async def test_a_refusal_that_the_caller_caused_is_the_same_again(client: Client, admin):
    bad = TASK | {"priority": 99}
    answers = [await client.post("/ains/tasks", json=bad, headers=key(admin)) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [400, 400]
    assert answers[0].json()["error"]["code"] == answers[1].json()["error"]["code"] == "INVALID_PRIORITY"
