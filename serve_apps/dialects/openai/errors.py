"""OpenAI: error types and codes, the error body, rate limit headers."""

from collections.abc import Iterable
from typing import Any

import orjson

from cluster.errors import (
    Conflict,
    Forbidden,
    IdempotencyMismatch,
    InsufficientResources,
    Invalid,
    LimitExceeded,
    ModelNotReady,
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
    Invalid: ("invalid_request", 400),
    IdempotencyMismatch: ("invalid_request", 422),
    TooLarge: ("invalid_request", 413),
    UnsupportedMedia: ("invalid_request", 415),
    Unauthenticated: ("invalid_api_key", 401),
    Forbidden: ("insufficient_permissions", 403),
    NotFound: ("model_not_found", 404),
    Conflict: ("conflict", 409),
    LimitExceeded: ("rate_limit_exceeded", 429),
    NotBuilt: ("not_implemented", 501),
    Unavailable: ("service_unavailable", 503),
    ModelNotReady: ("model_not_ready", 503),
    InsufficientResources: ("insufficient_resources", 503),
    VillageError: ("internal_error", 500),
}
TYPES = {401: "authentication_error", 403: "permission_error", 404: "invalid_request_error", 429: "rate_limit_error"}


def error_body(problem: Problem, call: Call | None = None) -> dict[str, Any]:
    """OpenAI's error object; what else is known stands under `details`, which its clients ignore."""
    kind = TYPES.get(problem.status, "invalid_request_error" if problem.status < 500 else "server_error")
    code = problem.code
    if "context_length" in problem.details:
        code = "context_length_exceeded"
    error = {"message": problem.message, "type": kind, "param": problem.details.get("field"), "code": code}
    if problem.details:
        error["details"] = dict(problem.details)
    return {"error": error}


def error_event(error: Exception) -> bytes:
    """An error in mid-stream."""
    if isinstance(error, VillageError):
        code, status = next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
        problem = Problem(code, status, error.message, error.details, error)
    else:
        problem = Problem("internal_error", 500, "an unexpected error", {}, error)
    return b"data: " + orjson.dumps(error_body(problem)) + b"\n\n"


def limit_headers(call: Call) -> Iterable[tuple[str, str]]:
    """Requests per minute, as OpenAI names them."""
    for state in call.limits:
        if state.window == "minute" or state.exceeded:
            yield "x-ratelimit-limit-requests", str(state.limit)
            yield "x-ratelimit-remaining-requests", str(state.remaining)
            yield "x-ratelimit-reset-requests", f"{state.reset_after}s"
