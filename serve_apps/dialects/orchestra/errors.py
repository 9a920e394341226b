"""AI Orchestra: error codes, the error body, rate limit headers."""

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
    TimedOut,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
    VillageError,
)
from serve_apps.kit.call import Call
from serve_apps.kit.dialect import Problem

CODES: dict[type[VillageError], tuple[str, int]] = {
    Invalid: ("VALIDATION_ERROR", 400),
    IdempotencyMismatch: ("VALIDATION_ERROR", 422),
    TooLarge: ("VALIDATION_ERROR", 413),
    UnsupportedMedia: ("VALIDATION_ERROR", 415),
    Unauthenticated: ("AUTHENTICATION_ERROR", 401),
    Forbidden: ("AUTHENTICATION_ERROR", 403),
    NotFound: ("VALIDATION_ERROR", 404),
    Conflict: ("VALIDATION_ERROR", 409),
    LimitExceeded: ("RATE_LIMIT_ERROR", 429),
    Unavailable: ("SERVICE_UNAVAILABLE", 503),
    TimedOut: ("TIMEOUT_ERROR", 504),
    NotBuilt: ("NOT_IMPLEMENTED", 501),
    VillageError: ("INTERNAL_ERROR", 500),
}


def error_body(problem: Problem, call: Call) -> dict[str, Any]:
    """The document's error format, with the metadata that it promises for all answers."""
    return {
        "success": False,
        "data": None,
        "metadata": {"request_id": call.request_id, "timestamp": iso(call.at), "version": "v2"},
        "error": {"code": problem.code, "message": problem.message, "details": dict(problem.details)},
    }


def limit_headers(call: Call) -> Iterable[tuple[str, str]]:
    """Of the minute, which is what the document counts in."""
    for state in call.limits:
        if state.window == "minute" or state.exceeded:
            yield "X-RateLimit-Limit", str(state.limit)
            yield "X-RateLimit-Remaining", str(state.remaining)
            yield "X-RateLimit-Reset", str(state.reset_at)
