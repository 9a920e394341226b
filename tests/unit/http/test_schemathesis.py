"""Schemathesis over the whole document: no 5xx, no undocumented status, type or shape, whatever is sent."""

import asyncio
import os
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks
from whole_village import bearer, end, known, placed, whole

from cluster.store import Store
from rag.embedding import MiniLM
from serve_apps.gateway import build_gateway
from serve_apps.openapi import document

LONG = os.environ.get("VILLAGE_FUZZ_EXAMPLES")  # of each operation: `make fuzz` makes many, and others each time
EXAMPLES = int(LONG or 4)
# Operations that may answer 503 here: what they need is not in this process, and they say so.
AWAY = {"POST /ains/routing/test": "no agent can take such a task"}
CHECKS = [
    checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance,
    checks.response_headers_conformance,
]  # fmt: skip


class Village:
    """A whole gateway in a thread with an event loop of its own: Schemathesis' tests are plain functions."""

    def __init__(self, url: str, home: Path) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.core = self.run(self._start(url, home))
        transport = httpx.ASGITransport(build_gateway(self.core), client=("192.0.2.1", 1), raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    async def _start(self, url: str, home: Path):
        store = Store(url)
        await store._redis.flushall()
        await store.close()
        return await whole(url, home, MiniLM())

    def send(self, case: Case, headers: dict[str, str]) -> httpx.Response:
        told = requests.Request(**case.as_transport_kwargs(base_url="http://village", headers=headers)).prepare()
        sent = [(as_bytes(name), as_bytes(value)) for name, value in told.headers.items()]
        request = self.client.build_request(told.method or "", told.url or "", headers=sent, content=told.body or b"")
        return self.run(self._send(request))

    async def _send(self, request: httpx.Request) -> httpx.Response:
        async with asyncio.timeout(20):
            return await self.client.send(request)

    def close(self) -> None:
        self.run(end(self.core))
        self.loop.call_soon_threadsafe(self.loop.stop)


def as_bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1", "replace")


@pytest.fixture(scope="module")
def village(redis_url: str) -> Iterator[Village]:
    with tempfile.TemporaryDirectory(prefix="village-test-") as home:
        made = Village(redis_url, Path(home))
        yield made
        made.close()


@pytest.fixture
def headers(village: Village) -> dict[str, str]:
    return village.run(bearer(village.core))


@pytest.fixture
def ids(village: Village) -> dict[str, dict[str, str]]:
    return village.run(known(village.core))


schema = schemathesis.openapi.from_dict(document(), config=SchemathesisConfig(seed=None if LONG else 1))
schema.config.generation.update(with_security_parameters=False)  # the caller is signed in
LASTING = "/v1/events"  # it does not end: test_http_socket.py has it


@schema.exclude(path=LASTING).parametrize()
@settings(
    max_examples=EXAMPLES, derandomize=not LONG, deadline=None, database=None,
    suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate],
)  # fmt: skip
def test_what_is_sent_is_answered_as_documented(case: Case, village: Village, headers, ids):
    answer = village.send(case, headers)
    check(case, answer)
    if answer.status_code == 401:  # the caller has signed himself out
        headers |= village.run(bearer(village.core))
    there = placed(case.path, ids)
    if there:  # once more where something is
        case.path_parameters = case.path_parameters | there
        check(case, village.send(case, headers))


def check(case: Case, answer: httpx.Response) -> None:
    operation = f"{case.operation.method.upper()} {case.path}"
    planned = case.operation.definition.raw.get("x-status") == "planned"
    allowed = ({501} if planned else set()) | ({503} if operation in AWAY else set())
    assert answer.status_code < 500 or answer.status_code in allowed, answer.text
    case.validate_response(answer, checks=CHECKS)
    try:
        case.validate_response(answer, checks=[checks.negative_data_rejection])
    except FailureGroup as accepted:
        # Pydantic takes what reads as the right type, `"5"` for 5 and 0 for false; any other fault has to be refused.
        if not all("Incorrect type" in fault.message for fault in accepted.exceptions):
            raise
