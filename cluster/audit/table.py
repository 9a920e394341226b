"""Which event is which entry of the audit log: one table, and the pure function that reads it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.audit.model import Draft, canonical
from cluster.events.model import Event
from cluster.origin import Origin
from cluster.trust.score import TrustEvent

LONGEST = 500  # characters of any text in an entry
EXACT = 2**53  # beyond this, JSON numbers differ between readers, and RFC 8785 has no form for them


@dataclass(frozen=True)
class Rule:
    """`details`: what is taken over from the event's data. `only`: a field of the data, and the value it must have."""

    event_type: str
    action: str
    success: bool = True
    details: tuple[str, ...] = ()
    only: tuple[str, Any] | None = None


_USER = ("username",)
_KEY = ("name", "client_id", "created_by", "scopes", "expires_at", "rate_limit_per_minute", "rate_limit_per_hour")
_WEBHOOK = ("host", "events", "agent_id", "active")
_SCHEDULE = ("name", "cron_expression", "timezone")
_TEMPLATE = ("name", "task_type")
_TRAINING = ("phase", "model_id")

TABLE: dict[str, Rule] = {
    # Who came in, and who was kept out.
    "session.started": Rule("authentication", "login", True, ("mfa",)),
    "login.failed": Rule("authentication", "login_failed", False, ("username", "reason", "during")),
    "login.mfa_failed": Rule("authentication", "mfa_failed", False, ("username", "reason", "during")),
    "key.used": Rule("authentication", "api_key_used", True, ("endpoint", "method")),
    "access.refused": Rule("authentication", "credential_refused", False, ("endpoint", "method", "reason", "count")),
    "access.denied": Rule("authorization", "permission_denied", False, ("endpoint", "method", "scope", "count")),
    "session.revoked": Rule("session", "session_revoked", True, ("user_id", "reason", "signed_in_at")),
    "token.revoked": Rule("session", "token_revoked", True, ("username", "session_id")),
    "user.signed_out": Rule("session", "signed_out_everywhere", True, _USER),
    # Who may come in, and with what.
    "user.created": Rule("user", "user_created", True, (*_USER, "tier", "scopes")),
    "user.updated": Rule("user", "user_updated", True, (*_USER, "changed")),
    "user.enabled": Rule("user", "user_enabled", True, (*_USER, "changed")),
    "user.disabled": Rule("user", "user_disabled", True, (*_USER, "changed")),
    "user.deleted": Rule("user", "user_deleted", True, _USER),
    "user.password_changed": Rule("user", "password_changed", True, (*_USER, "by")),
    "user.mfa_enabled": Rule("user", "mfa_enabled", True, _USER),
    "user.mfa_disabled": Rule("user", "mfa_disabled", True, (*_USER, "by")),
    "key.created": Rule("key", "key_created", True, _KEY),
    "key.revoked": Rule("key", "key_revoked", True, (*_KEY, "reason")),
    "signing_key.rotated": Rule("key", "signing_key_rotated"),
    # Trust, agents, webhooks.
    "trust.changed": Rule(
        "trust", "trust_adjusted", True, ("agent_id", "trust_score", "trust_delta", "record_id"),
        only=("event_type", TrustEvent.ADJUSTED),
    ),
    "agent.registered": Rule("agent", "agent_registered", True, ("display_name", "tags")),
    "agent.updated": Rule("agent", "agent_updated", True, ("changed",)),
    "agent.deactivated": Rule("agent", "agent_deactivated", True, ("reason",)),
    "farm.client_registered": Rule("agent", "farm_client_registered"),
    "webhook.created": Rule("webhook", "webhook_created", True, _WEBHOOK),
    "webhook.updated": Rule("webhook", "webhook_updated", True, _WEBHOOK),
    "webhook.secret_rotated": Rule("webhook", "webhook_secret_rotated", True, _WEBHOOK),
    "webhook.disabled": Rule("webhook", "webhook_disabled", True, (*_WEBHOOK, "reason")),
    "webhook.deleted": Rule("webhook", "webhook_deleted", True, _WEBHOOK),
    "webhook.tested": Rule("webhook", "webhook_tested", True, (*_WEBHOOK, "delivery_id", "delivered")),
    "webhook.replayed": Rule("webhook", "webhook_replayed", True, (*_WEBHOOK, "count")),
    # What makes tasks by itself, or for others to use.
    "schedule.created": Rule("workflow", "schedule_created", True, _SCHEDULE),
    "schedule.updated": Rule("workflow", "schedule_updated", True, _SCHEDULE),
    "schedule.paused": Rule("workflow", "schedule_paused", True, _SCHEDULE),
    "schedule.resumed": Rule("workflow", "schedule_resumed", True, _SCHEDULE),
    "schedule.deleted": Rule("workflow", "schedule_deleted", True, _SCHEDULE),
    "template.created": Rule("workflow", "template_created", True, _TEMPLATE),
    "template.updated": Rule("workflow", "template_updated", True, _TEMPLATE),
    "template.deleted": Rule("workflow", "template_deleted", True, _TEMPLATE),
    "chain.deleted": Rule("workflow", "chain_deleted", True, ("name",)),
    # Models and documents.
    "training.created": Rule("training", "training_requested", True, _TRAINING),
    "training.started": Rule("training", "training_started", True, _TRAINING),
    "training.resumed": Rule("training", "training_resumed", True, _TRAINING),
    "training.completed": Rule("training", "training_completed", True, _TRAINING),
    "training.failed": Rule("training", "training_failed", False, (*_TRAINING, "error")),
    "training.cancelled": Rule("training", "training_cancelled", True, _TRAINING),
    "deployment.created": Rule("deployment", "deployment_created", True, ("model_id",)),
    "deployment.activated": Rule("deployment", "deployment_activated", True, ("model_id",)),
    "deployment.failed": Rule("deployment", "deployment_failed", False, ("model_id", "error")),
    "deployment.rolled_back": Rule("deployment", "deployment_rolled_back", True, ("model_id",)),
    "farm.task_deleted": Rule("deletion", "farm_task_deleted", True, ("type",)),
    "model.deleted": Rule("deletion", "model_deleted", True, ("name",)),
    "knowledge.deleted": Rule("deletion", "document_deleted", True, ("title",)),
}  # fmt: skip
AUDITED = frozenset(TABLE)
EVENT_TYPES = tuple(sorted({rule.event_type for rule in TABLE.values()}))
ACTIONS = tuple(sorted({rule.action for rule in TABLE.values()}))


def draft(event: Event) -> Draft | None:
    """The entry of an event; None for one that the log does not keep."""
    rule = TABLE.get(event.kind)
    if rule is None or (rule.only and event.data.get(rule.only[0]) != rule.only[1]):
        return None
    origin = event.origin or Origin()
    client_id = text(origin.client_id or event.data.get("client_id") or _client(event.owner))
    # Who signs in is nobody yet; anywhere else the name is that of the user it was done to.
    claimed = event.data.get("username") if rule.event_type == "authentication" else ""
    details = {"endpoint": origin.endpoint, "method": origin.method, "subject": event.subject}
    details = {name: value for name, value in details.items() if value}
    details |= {name: event.data[name] for name in rule.details if event.data.get(name) is not None}
    return Draft(
        event_id=event.event_id, event_type=rule.event_type, action=rule.action, success=rule.success,
        details=canonical({name: plain(value) for name, value in details.items()}), client_id=client_id,
        principal_id=text(origin.principal_id), username=text(origin.username or claimed),
        actor=text(f"client_{origin.client_id}" if origin.client_id else origin.principal_id),
        owner=text(event.owner), subject=text(event.subject), ip_address=text(origin.address),
        user_agent=text(origin.user_agent), request_id=text(origin.request_id),
    )  # fmt: skip


def _client(owner: str) -> str:
    return owner.removeprefix("client_") if owner.startswith("client_") else ""


def text(value: Any) -> str:
    """A text of bounded length that UTF-8 can write, whatever came."""
    return "" if value is None else str(value)[:LONGEST].encode(errors="replace").decode()


def plain(value: Any, depth: int = 4) -> Any:
    """The value as canonical JSON can say it: bounded, and numbers that it has no form for as text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < EXACT else text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else text(value)
    if depth and isinstance(value, Mapping):
        return {text(name): plain(inner, depth - 1) for name, inner in list(value.items())[:50]}
    if depth and isinstance(value, list | tuple):
        return [plain(inner, depth - 1) for inner in value[:50]]
    return text(value)
