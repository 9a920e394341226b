"""Attacks that go for any route: another's ids, paths in ids, fields nobody offered, headers, verbs, odd JSON."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
from whole_village import bearer, end, known, placed, whole

from cluster.identity.records import ApiKey, User
from cluster.store import Store
from cluster.tasks.model import Task
from cluster.webhooks.model import Webhook
from rag.embedding import MiniLM
from rag.model import DocumentRecord
from serve_apps.core import Core
from serve_apps.dialects import DIALECTS
from serve_apps.gateway import build_gateway
from serve_apps.openapi import document
from train.registry import Model
from train.runs import Run

DOCUMENT = document()
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}
BUILT = {name: o for name, o in OPERATIONS.items() if o.get("x-status") != "planned"}
PLACED = [name for name in BUILT if "{" in name]
WITH_BODY = [n for n, o in BUILT.items() if "application/json" in o.get("requestBody", {}).get("content", {})]
REPORTS = {f"POST /ains/tasks/{{task_id}}/{word}" for word in ("result", "progress", "heartbeat")}
PUBLIC = {"agent_id"}  # agents are everybody's to see
PATHS = [
    "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..%5c..%5cboot.ini", "%00",
    "....//....//etc/passwd", "%252e%252e%252f", "a%0d%0aX-Evil:%201", "%ff%fe", "file:%2f%2f%2fetc%2fpasswd", "*",
    "x" * 4000,
]  # fmt: skip
POISON = {
    "owner": "user_poison", "user_id": "user_poison", "principal_id": "user_poison", "scopes": ["admin"],
    "tier": "enterprise", "is_admin": True, "rate_limit_per_minute": 999_999, "state": "COMPLETED",
    "status": "COMPLETED", "task_id": "task_poison", "model_id": "model_poison", "created_at": "1970-01-01T00:00:00Z",
    "public": True, "__proto__": {"admin": True}, "path": "/etc/passwd", "key_hash": "0" * 64,
}  # fmt: skip


class Village:
    def __init__(self, core: Core, client: httpx.AsyncClient) -> None:
        self.core, self.client = core, client

    async def ask(self, name: str, place: dict[str, str], body: Any = None, **more: Any) -> httpx.Response:
        method, path = name.split()
        place = dict.fromkeys(re.findall(r"\{(\w+)", path), "none") | place
        return await self.client.request(method, path.format_map(place), json=body, **more)


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    return MiniLM()


@pytest.fixture
async def village(store: Store, tmp_path: Path, minilm: MiniLM) -> AsyncIterator[Village]:
    core = await whole(store.url, tmp_path, minilm)
    transport = httpx.ASGITransport(build_gateway(core), client=("192.0.2.1", 1), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://village") as client:
        yield Village(core, client)
    await end(core)


@pytest.fixture
async def stranger(village: Village) -> dict[str, str]:
    """Somebody who may do everything that a client may, and owns nothing."""
    scopes = frozenset({"read", "write", "keys:manage", "agents:admin", "audit:read"})
    await village.core.identity.create_user("stranger", "correct horse", scopes)
    return await bearer(village.core, "stranger")


def example(name: str) -> Any:
    """A body that the operation takes: its document's, or one made of its schema's required fields."""
    media = OPERATIONS[name].get("requestBody", {}).get("content", {}).get("application/json", {})
    shown = next(iter(media.get("examples", {}).values()), None)
    if shown:
        return shown["value"]
    return filled(media["schema"]) if media else None


def filled(schema: dict[str, Any]) -> Any:
    if "$ref" in schema:
        return filled(DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return filled(schema["anyOf"][0])
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("format") == "date-time":
        return "2026-01-01T00:00:00Z"
    if schema.get("type") == "object":
        return {key: filled(schema["properties"][key]) for key in schema.get("required", ())}
    plain = {"string": "long enough", "integer": 1, "number": 0.1, "boolean": False, "array": []}
    return schema.get("examples", [plain.get(schema.get("type", "string"))])[0]


def told(answer: httpx.Response, *names: str) -> str:
    """The answer's text without what is new in every answer, and without the id that was asked for."""
    text = re.sub(r'"(timestamp|request_id)": ?"[^"]*"', "", answer.text)
    for name in names:
        text = text.replace(name, "ID")
    return text


async def test_anothers_record_is_as_if_it_were_not_there(village: Village, stranger):
    ids, wrong = await known(village.core), []
    before = await everything(village.core)
    for name in PLACED:
        place = placed(name.split()[1], ids)
        if "admin" in json.dumps(BUILT[name]["security"]) or not place or place.keys() <= PUBLIC:
            continue
        nobody = {key: f"{value[:-4]}zzzz" for key, value in place.items()}
        theirs = await village.ask(name, place, example(name), headers=stranger)
        missing = await village.ask(name, nobody, example(name), headers=stranger)
        if name in REPORTS:  # their credential is the task's token, not the caller
            assert theirs.status_code == missing.status_code == 401, name
        elif (theirs.status_code, told(theirs, *place.values())) != (404, told(missing, *nobody.values())):
            wrong.append(
                f"{name}: {theirs.status_code} {theirs.text[:150]} / {missing.status_code} {missing.text[:150]}"
            )
    assert not wrong, "\n".join(wrong)
    assert await everything(village.core) == before


async def everything(core: Core) -> dict[str, str]:
    """Every record that a client could want to change, as it is stored."""
    found = {}
    for kind in (ApiKey, DocumentRecord, Model, Run, Task, User, Webhook):
        async for key in core.store._redis.scan_iter(match=f"*:{kind.kind}:*"):
            found[key] = await core.store._redis.hget(key, "body")
    return found


@pytest.mark.parametrize("odd", PATHS)
async def test_an_id_that_is_a_path_leads_nowhere(village: Village, odd: str):
    headers = await bearer(village.core)
    for name in PLACED:
        for parameter in re.findall(r"\{(\w+)", name):
            answer = await village.ask(name, {parameter: odd}, example(name), headers=headers)
            # A DELETE of what an id leads to, `..` included, is some other route of ours, or none.
            allowed = {200, 400, 404, 405, 409, 501} if odd.startswith("..") else {400, 404, 405}
            if name.endswith("/revoke-keys"):
                allowed = allowed | {200}  # also of a user who is not there any more
            if name in REPORTS:
                allowed = allowed | {401}  # its credential is the task's token
            assert answer.status_code in allowed, (name, answer.status_code, answer.text[:200])
            assert "root:" not in answer.text and "x-evil" not in answer.headers, name


@pytest.mark.parametrize("name", WITH_BODY)
async def test_fields_that_nobody_offered_change_nothing(village: Village, name: str):
    core = village.core
    headers, ids = await bearer(core), await known(core)
    schema = OPERATIONS[name]["requestBody"]["content"]["application/json"]["schema"]
    offered = json.dumps(DOCUMENT["components"]["schemas"].get(schema.get("$ref", "").rpartition("/")[2], schema))
    poison = {key: value for key, value in POISON.items() if f'"{key}"' not in offered}
    owners = await owned(core)
    answer = await village.ask(name, placed(name.split()[1], ids), example(name) | poison, headers=headers)
    assert answer.status_code < 500 or name == "POST /ains/routing/test", answer.text  # no agent there
    admin = await core.identity.named("admin@village.local")
    for key, body in (await everything(core)).items():
        assert "poison" not in key and "user_poison" not in body, (name, key, body)
        if key not in owners:  # new: it is the caller's
            record = json.loads(body)
            assert record.get("owner", admin.user_id) in (admin.user_id, record.get("user_id")), (name, key, body)
    assert {key: owner for key, owner in (await owned(core)).items() if key in owners}.items() <= owners.items()


async def owned(core: Core) -> dict[str, tuple[Any, ...]]:
    """Whose each record is, and what it is allowed."""
    watched = ("owner", "client_id", "scopes", "tier", "public", "rate_limit_per_minute", "key_hash", "created_at")
    return {
        key: tuple(str(json.loads(body).get(field)) for field in watched)
        for key, body in (await everything(core)).items()
    }


@pytest.mark.parametrize("evil", [b"a\r\nX-Evil: 1", b"a\nX-Evil: 1", b"a\rX-Evil: 1", b"\xff\xfe", b"a" * 5000, b""])
async def test_no_header_of_ours_can_be_written_by_the_caller(village: Village, evil: bytes):
    """Every header that is echoed or kept: a server would refuse these bytes, and the gateway does not trust it to."""
    known_headers = [(b"authorization", (await bearer(village.core))["Authorization"].encode())]
    names = (
        b"x-request-id",
        b"idempotency-key",
        b"origin",
        b"host",
        b"x-forwarded-host",
        b"traceparent",
        b"user-agent",
    )
    for name in names:
        for method, path in (
            ("POST", "/ains/tasks"),
            ("GET", "/v1/models"),
            ("GET", "/nowhere"),
            ("POST", "/v1/models/train"),
        ):
            status, headers, _ = await raw(village, method, path, [*known_headers, (name, evil)], b"{}")
            assert status < 500, (name, path)
            for key, value in headers:
                assert b"\r" not in value and b"\n" not in value and b"Evil" not in key + value, (name, key, value)


async def raw(
    village: Village, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes = b"", query: bytes = b""
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """A request as no client library would send it."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": query, "root_path": "", "headers": headers,
        "client": ("192.0.2.1", 1), "server": ("village", 80),
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await build_gateway(village.core)(scope, receive, send)
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], sent[0]["headers"], content


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "CONNECT", "PUT", "PATCH", "PROPFIND", "EVIL"])
async def test_every_path_answers_every_method_in_its_dialect(village: Village, method: str):
    headers = await bearer(village.core)
    for path, operations in DOCUMENT["paths"].items():
        place = re.sub(r"\{\w+\}", "none", path)
        if any(re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", other), place) for other in taking(method)):
            continue
        tag = next(iter(operations.values()))["tags"][0]
        answer = await village.client.request(method, place, headers=headers)
        assert answer.status_code == 405, (method, path, answer.status_code)
        assert {m.upper() for m in operations} <= set(answer.headers["allow"].split(", ")), path
        schema = {"$ref": f"#/components/schemas/{tag}.Error", "components": DOCUMENT["components"]}
        if method != "HEAD":
            assert jsonschema_rs.Draft202012Validator(schema).is_valid(answer.json()), (method, path)


def taking(method: str) -> list[str]:
    return [path for path, operations in DOCUMENT["paths"].items() if method.lower() in operations]


async def test_a_method_is_what_it_is_letter_by_letter(village: Village):
    status, *_ = await raw(village, "get", "/v1/models", [])
    assert status == 405


async def test_a_method_in_a_header_counts_for_nothing(village: Village):
    headers, ids = await bearer(village.core), await known(village.core)
    key = ids[""]["key_id"]
    for name in ("X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"):
        await village.client.get(f"/ains/api-keys/{key}", headers=headers | {name: "DELETE"})
        await village.client.get(f"/ains/api-keys/{key}?_method=DELETE", headers=headers)
    assert (await village.client.get(f"/ains/api-keys/{key}", headers=headers)).json()["active"]


async def test_of_two_equal_headers_none_adds_a_right(village: Village, stranger):
    admin = (await bearer(village.core))["Authorization"].encode()
    own = stranger["Authorization"].encode()
    for pair in ((own, own), (own, b"Bearer x.y.z"), (b"Bearer x.y.z", own)):
        status, *_ = await raw(village, "GET", "/v1/users", [(b"authorization", value) for value in pair])
        assert status in (401, 403), pair
    # Whoever has the admin's token is the admin; who has two lengths or two types gets one of them, or a refusal.
    for name, values in (
        (b"content-length", (b"2", b"999999999")),
        (b"content-type", (b"text/plain", b"application/json")),
    ):
        told_twice = [(b"authorization", admin), *((name, value) for value in values)]
        status, *_ = await raw(village, "POST", "/ains/tasks", told_twice, b"{}")
        assert 400 <= status < 500, name


async def test_of_two_equal_fields_one_counts_wherever_the_body_is_read(village: Village):
    """A check that saw the first and a service that saw the last would be a hole; one parser reads it, once."""
    headers = (await bearer(village.core)) | {"Content-Type": "application/json"}
    body = b'{"client_id": "a", "task_type": "t", "capability_required": "c:v1", "input_data": {}, "priority": %b}'
    for first, last in ((b"1", b"99"), (b"99", b"1")):
        answer = await village.client.post(
            "/ains/tasks", content=body % (first + b', "priority": ' + last), headers=headers
        )
        assert answer.status_code == (400 if last == b"99" else 201), answer.text
    user = b'{"username": "twice", "password": "long enough", "scopes": ["read"], "scopes": ["admin"]}'
    made = await village.client.post("/v1/users", content=user, headers=headers)
    assert made.json()["data"]["scopes"] == ["admin"] and (await village.core.identity.named("twice")).scopes == {
        "admin"
    }


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.tag)
async def test_a_very_long_address_is_an_answer_in_its_dialect(village: Village, dialect):
    headers = [(b"authorization", (await bearer(village.core))["Authorization"].encode())]
    prefix = next((path for path in dialect.owns if path.endswith("/") and path != "/"), "/")
    schema = {"$ref": f"#/components/schemas/{dialect.tag}.Error", "components": DOCUMENT["components"]}
    for path, query in (
        (prefix + "x" * 100_000, b""),
        (prefix + "x/" * 20_000, b""),
        (prefix + "x", b"a=" + b"x" * 100_000),
    ):
        status, _, content = await raw(village, "GET", path, headers, query=query)
        assert status in (400, 404, 501), (path[:50], status)  # to AI Forge it is an id
        assert jsonschema_rs.Draft202012Validator(schema).is_valid(json.loads(content))
    status, _, content = await raw(
        village, "GET", "/ains/tasks", headers, query=b"&".join(b"limit=%d" % n for n in range(20_000))
    )
    assert status == 400 and len(content) < 10_000
