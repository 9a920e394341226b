"""Every error in every dialect: its status, its code, its shape, and nothing of another dialect's."""

from typing import Any

import pytest
from fastapi import APIRouter
from http_harness import Client
from pydantic import BaseModel, Field

from cluster.errors import Forbidden, VillageError
from cluster.limits.policy import Policy
from serve_apps.core import Core
from serve_apps.dialects import DIALECTS
from serve_apps.gateway import build_gateway
from serve_apps.kit.auth import SignedIn
from serve_apps.kit.dialect import Dialect
from serve_apps.scopes import SCOPES, SIGNED_IN

# dialect -> a prefix of its own, where its code is, the codes of: validation, sign-in, scope, missing, many, unbuilt
CASES = {
    "AIVillage": ("/v1", "error_code", "VALIDATION_ERROR AUTHENTICATION_REQUIRED INSUFFICIENT_PERMISSIONS "
                  "RESOURCE_NOT_FOUND RATE_LIMIT_EXCEEDED NOT_IMPLEMENTED INTERNAL_ERROR"),
    "AIFarm": ("/api", "error.code", "INVALID_REQUEST UNAUTHORIZED FORBIDDEN NOT_FOUND RATE_LIMIT_EXCEEDED "
               "NOT_IMPLEMENTED INTERNAL_ERROR"),
    "AINS": ("/ains", "error.code", "INVALID_REQUEST INVALID_API_KEY INSUFFICIENT_PERMISSIONS RESOURCE_NOT_FOUND "
             "RATE_LIMIT_EXCEEDED NOT_IMPLEMENTED INTERNAL_ERROR"),
    "Orchestra": ("/chat", "error.code", "VALIDATION_ERROR AUTHENTICATION_ERROR AUTHENTICATION_ERROR VALIDATION_ERROR "
                  "RATE_LIMIT_ERROR NOT_IMPLEMENTED INTERNAL_ERROR"),
    "Forge": ("/jobs", "code", "INVALID UNAUTHENTICATED FORBIDDEN NOT_FOUND LIMIT_EXCEEDED NOT_IMPLEMENTED "
              "INTERNAL_ERROR"),
}  # fmt: skip
UNBUILT = {  # of the dialects that have such; AI Farm and AINS are whole
    "AIVillage": "/v1/p2p/status",
    "Orchestra": "/chat/v2/chat",
    "Forge": "/missions",
}
TESTED = [dialect for dialect in DIALECTS if dialect.tag in CASES]


FORGED = {"Authorization": "Bearer x.y.z"}


DETAILS = {"limit": 1, "window": "minute", "reset_at": "2026-01-01T00:00:00Z", "retry_after_seconds": 7}
CODES_OF_THE_DOCUMENTS = {
    "AIVillage": {
        "AUTHENTICATION_REQUIRED": 401, "INSUFFICIENT_PERMISSIONS": 403, "RESOURCE_NOT_FOUND": 404,
        "VALIDATION_ERROR": 400, "RATE_LIMIT_EXCEEDED": 429, "SERVICE_UNAVAILABLE": 503, "INTERNAL_ERROR": 500,
        "INSUFFICIENT_RESOURCES": 503, "MODEL_TRAINING_FAILED": 422, "P2P_NETWORK_ERROR": 503,
        "AGENT_COMMUNICATION_FAILED": 503, "FOG_COMPUTE_ERROR": 503,
    },
    "AIFarm": {
        "INVALID_REQUEST": 400, "UNAUTHORIZED": 401, "FORBIDDEN": 403, "NOT_FOUND": 404, "CONFLICT": 409,
        "INTERNAL_ERROR": 500, "SERVICE_UNAVAILABLE": 503,
    },
    "AINS": {
        "INVALID_API_KEY": 401, "RATE_LIMIT_EXCEEDED": 429, "INSUFFICIENT_PERMISSIONS": 403, "INVALID_REQUEST": 400,
        "RESOURCE_NOT_FOUND": 404, "AGENT_NOT_FOUND": 404, "TASK_NOT_FOUND": 404, "TEMPLATE_NOT_FOUND": 404,
        "CHAIN_NOT_FOUND": 404, "SCHEDULE_NOT_FOUND": 404, "DEPENDENCY_NOT_FOUND": 400, "INSUFFICIENT_CAPACITY": 503,
        "AGENT_ALREADY_EXISTS": 409, "INVALID_CRON_EXPRESSION": 400, "INVALID_ROUTING_STRATEGY": 400,
        "TASK_NOT_CANCELLABLE": 409, "CIRCULAR_DEPENDENCY": 400,
    },  # the other six come from a field that breaks a rule: test_ains_has_a_code_for_each_broken_field
    "Orchestra": {
        "VALIDATION_ERROR": 400, "AUTHENTICATION_ERROR": 401, "RATE_LIMIT_ERROR": 429, "INTERNAL_ERROR": 500,
        "SERVICE_UNAVAILABLE": 503, "TIMEOUT_ERROR": 504,
    },
    "Forge": {"INVALID": 400, "NOT_FOUND": 404, "INTERNAL_ERROR": 500},
}  # fmt: skip


def every_error(of: type[VillageError] = VillageError) -> list[type[VillageError]]:
    """The class, and all below it."""
    return [
        of,
        *(kind for child in of.__subclasses__() if child.__module__ == of.__module__ for kind in every_error(child)),
    ]


class Order(BaseModel):
    size: int = Field(ge=1)


def with_routes(dialect: Dialect) -> Dialect:
    """The dialect with routes that go wrong in every way."""
    prefix = CASES[dialect.tag][0]
    router = APIRouter(prefix=f"{prefix}/zz")

    @router.post("/order")
    async def order(body: Order, who: SignedIn) -> Order:
        return body

    @router.get("/admin")
    async def admin(who: SignedIn) -> None: ...

    @router.get("/broken")
    async def broken(who: SignedIn) -> None:
        raise ZeroDivisionError("a secret of the inside")

    @router.get("/unlisted")
    async def unlisted(who: SignedIn) -> None:
        raise type("NewError", (VillageError,), {})("an error that no dialect has heard of")

    @router.get("/raise/{name}")
    async def raises(name: str, who: SignedIn) -> None:
        raise next(kind for kind in every_error() if kind.__name__ == name)("on purpose", **DETAILS)

    fields = {name: getattr(dialect, name) for name in dialect.__dataclass_fields__}
    return Dialect(**fields | {"routers": (*dialect.routers, router)})


def code_of(body: Any, where: str) -> str:
    for part in where.split("."):
        body = body[part]
    return body


@pytest.fixture
def gateway(core: Core, monkeypatch: pytest.MonkeyPatch):
    for tag, (prefix, *_) in CASES.items():
        needed = dict.fromkeys(("GET broken", "GET unlisted", "POST order", "GET raise/{name}"), SIGNED_IN)
        needed["GET admin"] = "agents:admin"
        for route, scope in needed.items():
            monkeypatch.setitem(SCOPES[tag], route.replace(" ", f" {prefix}/zz/"), scope)
    return build_gateway(core, [with_routes(d) if d.tag in CASES else d for d in DIALECTS])


@pytest.mark.parametrize("dialect", TESTED, ids=lambda d: d.tag)
async def test_every_error_speaks_its_dialect(dialect: Dialect, client: Client, admin, user):
    prefix, where, codes = CASES[dialect.tag]
    invalid, unknown_caller, forbidden, missing, _, unbuilt, internal = codes.split()
    zz, poor = f"{prefix}/zz", await user()
    field = "INVALID_FIELD_VALUE" if dialect.tag == "AINS" else invalid
    absent = "MISSING_REQUIRED_FIELD" if dialect.tag == "AINS" else invalid
    bad = dialect.invalid_status or 400
    planned = [(m, p) for m, p in dialect.documented if p == UNBUILT.get(dialect.tag)]
    rows = [
        ("POST", f"{zz}/order", {"content": b"{nonsense", "headers": admin}, bad, invalid),
        ("POST", f"{zz}/order", {"json": {}, "headers": admin}, bad, absent),
        ("POST", f"{zz}/order", {"json": {"size": 0}, "headers": admin}, bad, field),
        ("POST", f"{zz}/order", {"json": {"size": 1}}, 401, unknown_caller),
        (
            "POST",
            f"{zz}/order",
            {"json": {"size": 1}, "headers": FORGED},
            401,
            unknown_caller,
        ),
        ("POST", f"{zz}/order", {"json": {"size": 1}, "headers": {"X-API-Key": "ains_wrong"}}, 401, unknown_caller),
        ("GET", f"{zz}/admin", {"headers": poor}, 403, forbidden),
        ("GET", f"{zz}/nothing/here", {"headers": admin}, 404, missing),
        ("GET", f"{zz}/order", {"headers": admin}, 405, invalid),
        ("GET", f"{zz}/broken", {"headers": admin}, 500, internal),
        ("GET", f"{zz}/unlisted", {"headers": admin}, 500, internal),
        *((*documented, {"headers": admin, "json": {}}, 501, unbuilt) for documented in planned),
        *((*documented, {"json": {}}, 401, unknown_caller) for documented in planned),
    ]
    for method, path, request, status, code in rows:
        answer = await client.request(method, path, **request)
        assert (answer.status_code, code_of(answer.json(), where)) == (status, code), (path, answer.text)
        assert answer.headers["x-request-id"].startswith("req_")
        assert any(name.startswith("x-ratelimit-remaining") for name in answer.headers), path
        assert "secret" not in answer.text
    assert (await client.get(f"{zz}/order", headers=admin)).headers["allow"] == "POST"


@pytest.mark.parametrize("dialect", TESTED, ids=lambda d: d.tag)
async def test_every_code_of_its_document_can_be_answered(dialect: Dialect, client: Client, admin):
    prefix, where, _ = CASES[dialect.tag]
    seen: dict[str, int] = {}
    for kind in every_error():
        answer = await client.get(f"{prefix}/zz/raise/{kind.__name__}", headers=admin)
        code = next(dialect.codes[base] for base in kind.__mro__ if base in dialect.codes)
        assert (code_of(answer.json(), where), answer.status_code) == code, kind
        assert answer.headers["retry-after"] == "7"
        seen.setdefault(*code)
    assert seen.items() >= CODES_OF_THE_DOCUMENTS[dialect.tag].items()


@pytest.mark.parametrize("dialect", TESTED, ids=lambda d: d.tag)
async def test_one_request_too_many_is_429_with_the_time_to_come_back(
    dialect: Dialect, client: Client, core: Core, user
):
    prefix, where, codes = CASES[dialect.tag]
    one = {"minute": 1, "hour": 5}
    core.limiter.policy = Policy(
        tiers={"standard": one, "premium": one, "enterprise": one},
        dialects={
            "aifarm": {"requests": {"hour": 1}}, "orchestra": {"requests": {"minute": 1}},
            "forge": {"read": {"hour": 1}, "write": {"hour": 1}},
        },
    )  # fmt: skip
    headers = await user()
    statuses = [await client.get(f"{prefix}/zz/nothing", headers=headers) for _ in range(2)]
    first, second = statuses
    assert first.status_code == 404
    assert (second.status_code, code_of(second.json(), where)) == (429, codes.split()[4])
    assert 1 <= int(second.headers["retry-after"]) <= 3600
    remaining = [value for name, value in second.headers.items() if name.startswith("x-ratelimit-remaining")]
    assert "0" in remaining


async def test_a_request_id_of_the_callers_is_kept_if_it_is_sane(client: Client):
    assert (await client.get("/nowhere", headers={"X-Request-ID": "my-id.7"})).json()["request_id"] == "my-id.7"
    odd = await client.get("/nowhere", headers={"X-Request-ID": 'a"}{"'})
    assert odd.json()["request_id"].startswith("req_") and odd.headers["x-request-id"] == odd.json()["request_id"]


async def test_an_unknown_path_answers_in_the_first_dialect(client: Client):
    answer = await client.get("/no/such/thing")
    assert (answer.status_code, answer.json()["error_code"]) == (404, "RESOURCE_NOT_FOUND")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"type": "missing", "loc": ("body", "task_type"), "msg": "m"}, "MISSING_REQUIRED_FIELD"),
        ({"type": "less_than_equal", "loc": ("body", "priority"), "msg": "m"}, "INVALID_PRIORITY"),
        ({"type": "int_parsing", "loc": ("body", "tasks", 3, "priority"), "msg": "m"}, "INVALID_PRIORITY"),
        ({"type": "less_than_equal", "loc": ("body", "timeout_seconds"), "msg": "m"}, "INVALID_TIMEOUT"),
        ({"type": "less_than_equal", "loc": ("body", "max_retries"), "msg": "m"}, "MAX_RETRIES_EXCEEDED"),
        ({"type": "greater_than_equal", "loc": ("body", "max_retries"), "msg": "m"}, "INVALID_FIELD_VALUE"),
        ({"type": "too_long", "loc": ("body", "tasks"), "msg": "m"}, "BATCH_SIZE_EXCEEDED"),
        ({"type": "literal_error", "loc": ("body", "routing_strategy"), "msg": "m"}, "INVALID_ROUTING_STRATEGY"),
        ({"type": "string_type", "loc": ("body", "name"), "msg": "m"}, "INVALID_FIELD_VALUE"),
        ({"type": "json_invalid", "loc": ("body", 4), "msg": "m"}, "INVALID_REQUEST"),
        ({"type": "missing", "loc": ("body",), "msg": "m"}, "INVALID_REQUEST"),
    ],
)
def test_ains_has_a_code_for_each_broken_field(error, code):
    ains = next(dialect for dialect in DIALECTS if dialect.tag == "AINS")
    assert (ains.of_field(error) or "INVALID_REQUEST") == code


def test_every_dialect_answers_for_any_error():
    for dialect in DIALECTS:
        problem = dialect.problem(Forbidden("no", required_scope="x"))
        assert problem.status == 403 and VillageError in dialect.codes, dialect.name
