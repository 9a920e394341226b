"""AI Farm: error codes, the error body, rate limit headers."""

from collections.abc import Iterable
from typing import Any

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
    Invalid: ("INVALID_REQUEST", 400),
    IdempotencyMismatch: ("INVALID_REQUEST", 422),
    TooLarge: ("INVALID_REQUEST", 413),
    UnsupportedMedia: ("INVALID_REQUEST", 415),
    Unauthenticated: ("UNAUTHORIZED", 401),
    Forbidden: ("FORBIDDEN", 403),
    NotFound: ("NOT_FOUND", 404),
    Conflict: ("CONFLICT", 409),
    LimitExceeded: ("RATE_LIMIT_EXCEEDED", 429),
    Unavailable: ("SERVICE_UNAVAILABLE", 503),
    NotBuilt: ("NOT_IMPLEMENTED", 501),
    VillageError: ("INTERNAL_ERROR", 500),
}


def error_body(problem: Problem, call: Call) -> dict[str, Any]:
    """The document's error format."""
    return {"error": {"code": problem.code, "message": problem.message, "details": dict(problem.details)}}


def limit_headers(call: Call) -> Iterable[tuple[str, str]]:
    """X-RateLimit-* of the one window, and the version that the document asks for."""
    yield "X-API-Version", "1.0"
    for state in call.limits[:1]:
        yield "X-RateLimit-Limit", str(state.limit)
        yield "X-RateLimit-Remaining", str(state.remaining)
        yield "X-RateLimit-Reset", str(state.reset_at)
