"""AIVillage: error codes, the error body, rate limit headers."""

from collections.abc import Iterable
from typing import Any

from cluster.clock import iso
from cluster.errors import (
    AgentUnreachable,
    Conflict,
    FogFailed,
    Forbidden,
    IdempotencyMismatch,
    InsufficientResources,
    Invalid,
    LimitExceeded,
    NotBuilt,
    NotFound,
    PeerNetworkFailed,
    TooLarge,
    TrainingFailed,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
    VillageError,
)
from serve_apps.kit.call import Call
from serve_apps.kit.dialect import Problem

CODES: dict[type[VillageError], tuple[str, int]] = {
    Unauthenticated: ("AUTHENTICATION_REQUIRED", 401),
    Forbidden: ("INSUFFICIENT_PERMISSIONS", 403),
    NotFound: ("RESOURCE_NOT_FOUND", 404),
    Invalid: ("VALIDATION_ERROR", 400),
    IdempotencyMismatch: ("VALIDATION_ERROR", 422),
    TooLarge: ("VALIDATION_ERROR", 413),
    UnsupportedMedia: ("VALIDATION_ERROR", 415),
    Conflict: ("VALIDATION_ERROR", 409),
    LimitExceeded: ("RATE_LIMIT_EXCEEDED", 429),
    Unavailable: ("SERVICE_UNAVAILABLE", 503),
    InsufficientResources: ("INSUFFICIENT_RESOURCES", 503),
    TrainingFailed: ("MODEL_TRAINING_FAILED", 422),
    PeerNetworkFailed: ("P2P_NETWORK_ERROR", 503),
    AgentUnreachable: ("AGENT_COMMUNICATION_FAILED", 503),
    FogFailed: ("FOG_COMPUTE_ERROR", 503),
    NotBuilt: ("NOT_IMPLEMENTED", 501),
    VillageError: ("INTERNAL_ERROR", 500),
}


def error_body(problem: Problem, call: Call) -> dict[str, Any]:
    """The document's error format."""
    message, details = problem.message, dict(problem.details)
    if isinstance(problem.error, LimitExceeded) and "reset_at" in details:
        message = f"Rate limit exceeded for tier {tier(call)}"
        details = {
            "limit": details["limit"],
            "window": f"1 {details['window']}",
            "reset_at": details["reset_at"],
            "suggested_retry_after": details["retry_after_seconds"],
        }
    return {
        "success": False,
        "error_code": problem.code,
        "message": message,
        "details": details,
        "timestamp": iso(call.at),
        "request_id": call.request_id,
        "documentation": f"https://docs.aivillage.app/errors/{problem.code}",
    }


def tier(call: Call) -> str:
    """The caller's tier, as the limits see it."""
    return call.core.limiter.policy.tier_of(call.principal)


def limit_headers(call: Call) -> Iterable[tuple[str, str]]:
    """Of the window with the fewest requests left: the one that the caller meets first."""
    if not call.limits:
        return
    state = min(call.limits, key=lambda s: s.remaining)
    yield "X-RateLimit-Tier", tier(call)
    yield "X-RateLimit-Limit", str(state.limit)
    yield "X-RateLimit-Remaining", str(state.remaining)
    yield "X-RateLimit-Reset", str(state.reset_at)
    yield "X-RateLimit-Reset-After", str(state.reset_after)
