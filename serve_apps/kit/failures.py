"""The errors of a dialect as its OpenAPI document shows them: all made by the dialect itself, none written again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError

from cluster.clock import iso
from cluster.errors import (
    Conflict,
    Forbidden,
    IdempotencyMismatch,
    Invalid,
    LimitExceeded,
    NotBuilt,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
    VillageError,
)
from cluster.limits import policy
from cluster.limits.limiter import LimitState
from serve_apps.kit.call import Call
from serve_apps.kit.guard import WITH_BODY
from serve_apps.kit.parameters import limit_header
from serve_apps.scopes import OPEN, SIGNED_IN

if TYPE_CHECKING:
    from serve_apps.kit.dialect import Dialect, Problem

AT = datetime(2025, 1, 15, 10, 30, tzinfo=UTC)
DETAILS: dict[type[VillageError], dict[str, Any]] = {
    LimitExceeded: {
        "limit": 60, "window": "minute", "reset_at": iso(AT), "retry_after_seconds": 12, "current_usage": 61,
    },
    Forbidden: {"required_scope": "tasks:write", "scopes": ["tasks:read"]},
    TooLarge: {"field": "body", "max_bytes": 8 << 20},
    UnsupportedMedia: {"field": "Content-Type", "allowed_values": ["application/json"]},
}  # fmt: skip
MISSING = {"type": "missing", "loc": ("body", "name"), "msg": "Field required", "ctx": {}}
WORDS = {
    400: "The request breaks a rule; the details say which field", 401: "No credential, or one that is not good",
    403: "The credential lacks the scope", 404: "Nothing of that id, or it belongs to somebody else",
    409: "Not in the state that it is in, or the Idempotency-Key is in use", 413: "The body is too long",
    415: "The body is of another kind than this takes", 429: "Too many requests", 500: "An unexpected error",
    422: "The Idempotency-Key came with another request before, or the request cannot be carried out",
    501: "Documented, and not built yet", 503: "A part that the request needs is away just now",
    504: "It took too long",
}  # fmt: skip


def of(dialect: Dialect, method: str, path: str, asks: bool, needed: str, planned: bool) -> set[int]:
    """The statuses that any route like this may answer with. `asks`: it has parameters."""
    sends = method in WITH_BODY
    may: dict[type[VillageError], bool] = {
        VillageError: True,
        Invalid: asks or sends,
        TooLarge: sends,
        UnsupportedMedia: sends,
        Conflict: sends and (method == "POST" or not planned),
        IdempotencyMismatch: method == "POST",
        Unauthenticated: needed != OPEN,
        Forbidden: needed not in (OPEN, SIGNED_IN),
        NotFound: "{" in path and not planned,
        LimitExceeded: path not in dialect.uncounted,
        Unavailable: path not in dialect.uncounted,
        NotBuilt: planned,
    }
    statuses = {dialect.codes[kind][1] for kind, can in may.items() if can}
    if may[Invalid] and dialect.invalid_status:
        statuses.add(dialect.invalid_status)
    return statuses


def reference(dialect: Dialect, status: int) -> dict[str, str]:
    """The component that says how the dialect answers with this status."""
    return {"$ref": f"#/components/responses/{dialect.tag}.{status}"}


def responses(dialect: Dialect) -> dict[str, Any]:
    """For each status of the dialect's errors a response with an example of each code."""
    found: dict[str, Any] = {}
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in limit_headers(dialect)}
    for problem, body in _all(dialect):
        status = problem.status
        response = found.setdefault(f"{dialect.tag}.{status}", {
            "description": WORDS[status],
            "headers": _named("X-Request-ID") | headers
            | (_named("Retry-After") if status in (429, 503) else {})
            | (_named("WWW-Authenticate") if status == 401 else {}),
            "content": {"application/json": {
                "schema": {"$ref": f"#/components/schemas/{dialect.tag}.Error"}, "examples": {},
            }},
        })  # fmt: skip
        response["content"]["application/json"]["examples"].setdefault(problem.code, {"value": body})
    return found


def schema(dialect: Dialect) -> dict[str, Any]:
    """What all of the dialect's errors have in common."""
    return _shape([body for _, body in _all(dialect)])


def limit_headers(dialect: Dialect) -> dict[str, Any]:
    """The headers that say where the caller stands, by name."""
    return {name: limit_header(name, value) for name, value in dialect.limit_headers(_call(dialect))}


def _named(name: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"}}


def _call(dialect: Dialect) -> Call:
    shipped = policy.load()
    core: Any = SimpleNamespace(limiter=SimpleNamespace(policy=shipped))
    bucket = dialect.bucket({"method": "GET", "path": "/"})
    states = tuple(
        LimitState(window.span, window.limit, 1, int(AT.timestamp()) + window.seconds, window.seconds)
        for window in shipped.windows(dialect.tag.lower(), bucket, None)
    )
    return Call(core, "req_123456789", AT, limits=states)


def _all(dialect: Dialect) -> Iterator[tuple[Problem, dict[str, Any]]]:
    call = _call(dialect)
    errors: list[Exception] = [kind(_message(kind), **DETAILS.get(kind, {})) for kind in _kinds(VillageError)]
    for error in (RequestValidationError([MISSING]), *errors):
        problem = dialect.problem(error)
        yield problem, dialect.error_body(problem, call)


def _kinds(kind: type[VillageError]) -> Iterator[type[VillageError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == VillageError.__module__:
            yield from _kinds(child)


def _message(kind: type[VillageError]) -> str:
    """The first sentence of its docstring."""
    if kind is VillageError:
        return "an unexpected error; its request_id is in the log"
    return re.split(r"[.;]", kind.__doc__ or "")[0]


TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null", list: "array"}


def _shape(values: Sequence[Any]) -> dict[str, Any]:
    """A schema that all the values keep; an object that is empty in one of them may hold anything."""
    if all(isinstance(value, Mapping) for value in values):
        if not all(values):
            return {"type": "object"}
        common = [key for key in values[0] if all(key in value for value in values)]
        return {
            "type": "object", "required": common,
            "properties": {key: _shape([value[key] for value in values]) for key in common},
        }  # fmt: skip
    types = sorted({TYPES[type(value)] for value in values})
    return {"type": types[0] if len(types) == 1 else types}
