"""Redis is paused, killed, or away: every request is answered in time and in its dialect, and all works again after."""

import asyncio
import re
import signal
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
from eventually import eventually
from restartable import Redis
from socket_harness import joined, progress, said, serving, subscribed
from websockets.exceptions import ConnectionClosed
from whole_village import bearer, end, known, placed, whole

from cluster.clock import utc_now
from cluster.idempotency import LEASE
from cluster.limits.limiter import Counted
from rag.embedding import MiniLM
from serve_apps.core import Core
from serve_apps.gateway import Gateway, build_gateway
from serve_apps.openapi import document

PATIENCE_SECONDS = 5.0
PAUSE_SECONDS = 6.0
DOCUMENT = document()
LASTING = "/v1/events"
ASKED = [
    (method.upper(), path, operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
    if path != LASTING
]
BARE = {"/", "/healthz", "/health", "/readiness", "/metrics"}  # they say what is away; they do not need it


@dataclass
class Village:
    redis: Redis
    core: Core
    gateway: Gateway
    client: httpx.AsyncClient
    headers: dict[str, str]
    ids: dict[str, dict[str, str]]

    async def ask(self, method: str, path: str, operation: dict[str, Any], **more: Any) -> tuple[httpx.Response, float]:
        """The answer to a request that is as the document shows it, and how long it took."""
        examples = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("examples", {})
        body = more.get("json") or next(
            (example["value"] for example in examples.values()), {} if method in ("POST", "PUT") else None
        )
        place = dict.fromkeys(re.findall(r"\{(\w+)", path), "some") | placed(path, self.ids)
        begun = asyncio.get_running_loop().time()
        async with asyncio.timeout(60):
            answer = await self.client.request(
                method, path.format_map(place), json=body, headers=self.headers | more.get("headers", {})
            )
        return answer, asyncio.get_running_loop().time() - begun

    async def ask_all(self, **more: Any) -> list[tuple[str, httpx.Response, float, dict[str, Any]]]:
        answers = await asyncio.gather(*(self.ask(*asked, **more) for asked in ASKED))
        return [
            (f"{method} {path}", *answer, operation)
            for (method, path, operation), answer in zip(ASKED, answers, strict=True)
        ]


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    return MiniLM()


@pytest.fixture
async def village(tmp_path: Path, minilm: MiniLM) -> AsyncIterator[Village]:
    with tempfile.TemporaryDirectory(prefix="village-test-") as name:
        redis = Redis(Path(name))
        redis.start()
        await redis.answers()
        core = await whole(redis.url, tmp_path, minilm)
        gateway = build_gateway(core)
        transport = httpx.ASGITransport(gateway, client=("192.0.2.1", 1), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://village") as client:
            yield Village(redis, core, gateway, client, await bearer(core), await known(core))
        redis.send(signal.SIGCONT)
        await end(core)
        redis.kill()


async def test_while_redis_is_paused_every_request_is_answered_in_time_and_in_its_dialect(village: Village):
    await village.client.get("/v1/users/me", headers=village.headers)  # the credential is known from here on
    village.redis.send(signal.SIGSTOP)
    wrong = []
    for name, answer, seconds, operation in await village.ask_all():
        wrong += refused(name, answer, seconds, operation)
    assert not wrong, "\n".join(wrong)


def refused(name: str, answer: httpx.Response, seconds: float, operation: dict[str, Any]) -> list[str]:
    """What is wrong with an answer that cannot be given just now."""
    wrong = [f"{name}: {seconds:.1f} s"] if seconds > PATIENCE_SECONDS else []
    if name.split()[1] in BARE:
        return wrong + ([] if answer.status_code in (200, 503) else [f"{name}: {answer.status_code}"])
    if answer.status_code != 503 or not 1 <= int(answer.headers.get("retry-after", 0)) <= 60:
        return [*wrong, f"{name}: {answer.status_code} {answer.headers.get('retry-after')} {answer.text[:200]}"]
    schema = {"$ref": f"#/components/schemas/{operation['tags'][0]}.Error", "components": DOCUMENT["components"]}
    faults = jsonschema_rs.Draft202012Validator(schema).iter_errors(answer.json())
    return wrong + [f"{name}: {fault.message}" for fault in faults]


async def test_a_request_that_redis_leaves_half_way_is_answered_in_time(village: Village):
    """Admission is behind it: each further step would wait for Redis, and together they must not wait too long."""
    wrong = []
    await village.client.get("/v1/users/me", headers=village.headers)

    async def hit(*_: Any) -> Counted:
        return Counted(())

    village.core.limiter.hit = hit  # type: ignore[method-assign]
    village.redis.send(signal.SIGSTOP)
    for more in ({}, {"headers": {"Idempotency-Key": "k"}}):
        for name, answer, seconds, _ in await village.ask_all(**more):
            if seconds > PATIENCE_SECONDS or answer.status_code in (500, 502, 504):
                wrong.append(f"{name} {more}: {answer.status_code} after {seconds:.1f} s {answer.text[:120]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("where", ["before its change", "within its change"])
async def test_an_idempotency_key_keeps_its_word_when_redis_pauses(village: Village, where: str):
    before = await count(village)
    submit, commit, store = village.core.tasks.submit, village.core.store.commit, village.core.store

    async def paused_commit(*writes: Any) -> bool:
        village.redis.send(signal.SIGSTOP)
        return await commit(*writes)

    async def paused(*told: Any) -> Any:
        if where == "before its change":
            village.redis.send(signal.SIGSTOP)
        else:
            store.commit = paused_commit  # type: ignore[method-assign]
        return await submit(*told)

    village.core.tasks.submit = paused
    task = {"client_id": "a", "task_type": "t", "capability_required": "sums:v1", "input_data": {}}
    once = {"headers": {"Idempotency-Key": "once"}, "json": task}
    operation = DOCUMENT["paths"]["/ains/tasks"]["post"]
    answer, seconds = await village.ask("POST", "/ains/tasks", operation, **once)
    assert answer.status_code == 503 and seconds < PATIENCE_SECONDS, f"{answer.text} after {seconds:.1f} s"
    village.redis.send(signal.SIGCONT)
    village.core.tasks.submit, store.commit = submit, commit  # type: ignore[method-assign]
    await works(village)
    carried_out = await count(village) == before + 1
    village.core.idempotency.clock = lambda: utc_now() + LEASE  # nobody works on it any more
    for _ in range(2):
        answer, _ = await village.ask("POST", "/ains/tasks", operation, **once)
        assert answer.status_code == (409 if carried_out else 201), answer.text
    assert await count(village) == before + 1


async def count(village: Village) -> int:
    return (await village.client.get("/ains/tasks", headers=village.headers)).json()["pagination"]["total"]


async def works(village: Village) -> None:
    """Return once Redis answers again."""

    async def answered() -> bool:
        return (await village.client.get("/v1/users/me", headers=village.headers)).status_code == 200

    await eventually(answered)


@pytest.mark.parametrize("how", ["paused", "killed"])
async def test_everything_works_again_after_redis_was_away(village: Village, how: str, tmp_path: Path):
    """And a WebSocket tells every event once, or ends with 1013 and tells the rest to who comes back."""
    before = await seen(village)
    path, core = str(tmp_path / "g.sock"), village.core
    async with serving(village.gateway, path), joined(path, village.headers) as socket:
        await subscribed(socket)
        first = await told(socket, core, 0.1)
        began = asyncio.get_running_loop().time()
        if how == "paused":
            village.redis.send(signal.SIGSTOP)
        else:
            village.redis.kill()
        while asyncio.get_running_loop().time() - began < PAUSE_SECONDS:
            answer, seconds = await village.ask("GET", "/v1/models", {})
            assert answer.status_code == 503 and seconds < PATIENCE_SECONDS
            stranger, seconds = await village.ask("POST", "/auth/token", DOCUMENT["paths"]["/auth/token"]["post"])
            assert stranger.status_code == 503 and seconds < PATIENCE_SECONDS
            if how == "killed":
                await asyncio.sleep(0.1)
        if how == "paused":
            village.redis.send(signal.SIGCONT)
        else:
            village.redis.start()
            await village.redis.answers()
        await works(village)
        try:
            assert (await told(socket, core, 0.2))["progress"] == 0.2
        except ConnectionClosed as closed:
            assert closed.rcvd is not None and closed.rcvd.code == 1013
            async with joined(path, village.headers) as again:
                await subscribed(again, last_event_id=first["event_id"])
                assert (await said(again))["progress"] == 0.2
    assert await seen(village) == before


async def seen(village: Village) -> dict[str, int]:
    """What reading everything gives."""
    found = {}
    for method, path, operation in ASKED:
        if method == "GET":
            found[path] = (await village.ask(method, path, operation))[0].status_code
    return found


async def told(socket: Any, core: Core, part: float) -> dict[str, Any]:
    await core.store.publish(progress("user_x", subject="task_x", part=part))
    while True:
        message = await said(socket)
        if message.get("task_id") == "task_x":
            return message


async def test_a_credential_that_nobody_remembers_is_answered_in_time_too(village: Village):
    fresh = [await bearer(village.core) for _ in range(3)]
    village.redis.send(signal.SIGSTOP)
    begun = asyncio.get_running_loop().time()
    answers = await asyncio.gather(*(village.client.get("/ains/tasks", headers=headers) for headers in fresh))
    assert [answer.status_code for answer in answers] == [503] * 3
    assert asyncio.get_running_loop().time() - begun < PATIENCE_SECONDS
