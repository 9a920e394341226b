"""DukeNet AINS: its 23 error codes, the error body, rate limit headers."""

from collections.abc import Iterable
from typing import Any

from cluster.clock import iso
from cluster.errors import (
    AgentExists,
    AgentNotFound,
    BadSchedule,
    ChainNotFound,
    CircularDependency,
    Conflict,
    DependencyNotFound,
    Forbidden,
    IdempotencyMismatch,
    Invalid,
    LimitExceeded,
    NoCapableAgent,
    NotBuilt,
    NotCancellable,
    NotFound,
    ScheduleNotFound,
    TaskNotFound,
    TemplateNotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnknownStrategy,
    UnsupportedMedia,
    VillageError,
)
from serve_apps.kit.call import Call
from serve_apps.kit.dialect import FieldError, Problem

CODES: dict[type[VillageError], tuple[str, int]] = {
    Unauthenticated: ("INVALID_API_KEY", 401),
    LimitExceeded: ("RATE_LIMIT_EXCEEDED", 429),
    Forbidden: ("INSUFFICIENT_PERMISSIONS", 403),
    Invalid: ("INVALID_REQUEST", 400),
    IdempotencyMismatch: ("INVALID_REQUEST", 422),
    TooLarge: ("INVALID_REQUEST", 413),
    UnsupportedMedia: ("INVALID_REQUEST", 415),
    DependencyNotFound: ("DEPENDENCY_NOT_FOUND", 400),
    CircularDependency: ("CIRCULAR_DEPENDENCY", 400),
    UnknownStrategy: ("INVALID_ROUTING_STRATEGY", 400),
    BadSchedule: ("INVALID_CRON_EXPRESSION", 400),
    NotFound: ("RESOURCE_NOT_FOUND", 404),
    AgentNotFound: ("AGENT_NOT_FOUND", 404),
    TaskNotFound: ("TASK_NOT_FOUND", 404),
    TemplateNotFound: ("TEMPLATE_NOT_FOUND", 404),
    ChainNotFound: ("CHAIN_NOT_FOUND", 404),
    ScheduleNotFound: ("SCHEDULE_NOT_FOUND", 404),
    Conflict: ("INVALID_REQUEST", 409),
    AgentExists: ("AGENT_ALREADY_EXISTS", 409),
    NotCancellable: ("TASK_NOT_CANCELLABLE", 409),
    Unavailable: ("SERVICE_UNAVAILABLE", 503),
    NoCapableAgent: ("INSUFFICIENT_CAPACITY", 503),
    NotBuilt: ("NOT_IMPLEMENTED", 501),
    VillageError: ("INTERNAL_ERROR", 500),
}
FIELD_CODES = {
    "priority": "INVALID_PRIORITY",
    "default_priority": "INVALID_PRIORITY",
    "timeout_seconds": "INVALID_TIMEOUT",
    "default_timeout": "INVALID_TIMEOUT",
    "max_retries": "MAX_RETRIES_EXCEEDED",
    "default_max_retries": "MAX_RETRIES_EXCEEDED",
    "routing_strategy": "INVALID_ROUTING_STRATEGY",
    "cron_expression": "INVALID_CRON_EXPRESSION",
}


def of_field(error: FieldError) -> str | None:
    """The document's code for a field that breaks a rule; None where the whole body is at fault."""
    kind, place = error["type"], error["loc"]
    field = next((part for part in reversed(place) if isinstance(part, str)), "")
    if kind == "missing" and len(place) > 1:
        return "MISSING_REQUIRED_FIELD"
    if field == "tasks" and kind == "too_long":
        return "BATCH_SIZE_EXCEEDED"
    if "max_retries" in field and kind != "less_than_equal":
        return "INVALID_FIELD_VALUE"
    if field in FIELD_CODES:
        return FIELD_CODES[field]
    return "INVALID_FIELD_VALUE" if len(place) > 1 and kind != "json_invalid" else None


def error_body(problem: Problem, call: Call) -> dict[str, Any]:
    """The document's error format."""
    message, details = problem.message, dict(problem.details)
    if isinstance(problem.error, LimitExceeded):
        message = f"Rate limit exceeded: {details['limit']} requests per {details['window']}"
        details["window"] = f"per_{details['window']}"
    return {
        "error": {
            "code": problem.code,
            "message": message,
            "details": details,
            "timestamp": iso(call.at),
            "request_id": call.request_id,
        }
    }


def limit_headers(call: Call) -> Iterable[tuple[str, str]]:
    """Limit, remaining and reset of the minute and of the hour."""
    for state in call.limits:
        span = state.window.capitalize()
        yield f"X-RateLimit-Limit-{span}", str(state.limit)
        yield f"X-RateLimit-Remaining-{span}", str(state.remaining)
        yield f"X-RateLimit-Reset-{span}", str(state.reset_at)
