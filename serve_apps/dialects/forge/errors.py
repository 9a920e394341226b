"""AI Forge: statuses, the error body, rate limit headers. It has no error codes of its own."""

from collections.abc import Iterable
from typing import Any

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
from serve_apps.kit.call import Call
from serve_apps.kit.dialect import Problem

CODES: dict[type[VillageError], tuple[str, int]] = {
    Invalid: ("INVALID", 400),
    IdempotencyMismatch: ("INVALID", 422),
    TooLarge: ("INVALID", 413),
    UnsupportedMedia: ("INVALID", 415),
    Unauthenticated: ("UNAUTHENTICATED", 401),
    Forbidden: ("FORBIDDEN", 403),
    NotFound: ("NOT_FOUND", 404),
    Conflict: ("CONFLICT", 409),
    LimitExceeded: ("LIMIT_EXCEEDED", 429),
    Unavailable: ("UNAVAILABLE", 503),
    NotBuilt: ("NOT_IMPLEMENTED", 501),
    VillageError: ("INTERNAL_ERROR", 500),
}


def error_body(problem: Problem, call: Call) -> dict[str, Any]:
    """`status`, `message`, `detail`, as the document has it; `code` and `meta` so that a program can tell and ask."""
    detail = dict(problem.details)
    if "reason" in detail:
        detail["error"] = detail.pop("reason")
    return {
        "status": problem.status,
        "message": problem.message,
        "detail": detail,
        "code": problem.code,
        "meta": {"timestamp": iso(call.at), "request_id": call.request_id},
    }


def limit_headers(call: Call) -> Iterable[tuple[str, str]]:
    """X-RateLimit-* of the one window that the request counted in."""
    for state in call.limits[:1]:
        yield "X-RateLimit-Limit", str(state.limit)
        yield "X-RateLimit-Remaining", str(state.remaining)
        yield "X-RateLimit-Reset", str(state.reset_at)
