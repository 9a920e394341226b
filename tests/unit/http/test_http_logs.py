"""What the gateway logs of a request: enough to find it in every process, and no credential."""

import asyncio
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import structlog
from http_harness import PASSWORD, Client

from cluster import logs
from cluster.tasks.service import Tasks
from serve_apps.core import Core
from serve_apps.gateway import Gateway, build_gateway
from serve_apps.kit.readiness import Readiness


class Written(io.BytesIO):
    def lines(self, event: str = "") -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.getvalue().splitlines()]
        return [line for line in found if event in ("", line["event"])]


@pytest.fixture
def written() -> Iterator[Written]:
    stream = Written()
    logs.configure("gateway", stream)
    yield stream
    logs.configure("test")


def caller(gateway: Gateway) -> Client:
    transport = httpx.ASGITransport(gateway, client=("192.0.2.1", 1), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://village")


@pytest.fixture
def logged(core: Core) -> Gateway:
    core.settings = core.settings.model_copy(update={"access_log": True})
    return build_gateway(core)


async def test_a_request_is_a_line_where_the_setting_wants_it(
    written: Written, core: Core, logged: Gateway, admin: dict[str, str]
):
    core.tasks = Tasks(core.store)
    async with caller(logged) as client:
        await client.get("/ains/tasks/task_none?token=in-the-query", headers=admin | {"X-Request-Id": "req_mine"})
        await client.get("/ains/tasks")
        await client.get("/readiness")
    first, second = written.lines("request")  # those that ask every few seconds have none
    assert (first["method"], first["endpoint"], first["status"]) == ("GET", "/ains/tasks/{task_id}", 404)
    assert (first["request_id"], first["dialect"], first["part"]) == ("req_mine", "AINS", "gateway")
    assert first["principal_id"].startswith("user_") and first["milliseconds"] > 0
    assert (second["status"], second["principal_id"]) == (401, "")
    assert b"in-the-query" not in written.getvalue()


async def test_a_request_is_no_line_otherwise(written: Written, client: Client, admin: dict[str, str]):
    await client.get("/ains/version", headers=admin)
    assert not written.lines()


async def test_what_goes_wrong_inside_a_request_is_told_with_its_request_principal_and_dialect(
    written: Written, client: Client, core: Core, admin: dict[str, str]
):
    async def broken(*_: Any, **__: Any) -> None:
        structlog.get_logger().warning("about to break")
        raise RuntimeError("a bug")

    core.tasks = Tasks(core.store)
    core.tasks.get = broken
    answer = await client.get("/ains/tasks/task_1", headers=admin | {"X-Request-Id": "req_mine"})
    assert answer.status_code == 500
    [warned], [failed] = written.lines("about to break"), written.lines("unexpected error")
    for line in (warned, failed):
        assert (line["request_id"], line["dialect"]) == ("req_mine", "AINS")
    assert warned["principal_id"].startswith("user_") and "RuntimeError: a bug" in failed["exception"]
    await client.get("/nowhere")
    structlog.get_logger().info("after the request")
    assert "request_id" not in written.lines("after the request")[0]


async def test_requests_at_once_keep_their_own_ids(written: Written, client: Client, core: Core):
    async def probe() -> bool:
        return True

    core.readiness = Readiness({"part": probe})

    async def ask(number: int) -> None:
        await client.get("/ains/nowhere", headers={"X-Request-Id": f"req_{number}"})
        assert "request_id" not in structlog.contextvars.get_contextvars()

    await asyncio.gather(*(ask(number) for number in range(20)))


async def test_no_credential_is_in_any_line_whatever_is_asked(
    written: Written, core: Core, logged: Gateway, admin: dict[str, str]
):
    async def broken(*_: Any, **told: Any) -> None:
        raise RuntimeError(f"a bug with {admin} and {told} and password={PASSWORD!r}")

    async with caller(logged) as client:
        signed = await client.post("/auth/token", json={"username": "admin@village.local", "password": PASSWORD})
        pair = signed.json()
        made = await client.post("/ains/api-keys", json={"client_id": "acme", "name": "k"}, headers=admin)
        key = next(value for value in made.json().values() if str(value).startswith("ains_"))
        await client.post("/auth/refresh", json={"refresh_token": pair["refresh_token"]})
        await client.post("/auth/token", json={"username": "ann", "password": "wrong-password"})
        await client.get("/ains/tasks", headers={"X-API-Key": key})
        core.tasks = Tasks(core.store)
        core.tasks.get = broken
        await client.get(f"/ains/tasks/task_1?token={pair['access_token']}", headers=admin)
    assert len(written.lines("request")) >= 6 and written.lines("unexpected error")
    token = admin["Authorization"].split()[1]
    for secret in (token, pair["access_token"], pair["refresh_token"], key, PASSWORD, "wrong-password"):
        assert secret.encode() not in written.getvalue(), secret
