"""AINS, audit log: parse, call the core, render."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from cluster.audit.filters import Filter
from cluster.audit.model import Entry, told
from cluster.audit.table import ACTIONS, EVENT_TYPES
from cluster.clock import iso
from cluster.errors import Invalid
from cluster.identity.model import Principal
from serve_apps.core import FromCore
from serve_apps.dialects.ains.routes_trust import aware
from serve_apps.kit.auth import SignedIn
from serve_apps.kit.pagination import Limit50, Offset, more

router = APIRouter(prefix="/ains/audit-logs")


class LogEntry(BaseModel):
    """One entry; `number`, `previous_hash` and `hash` are its place in the chain."""

    log_id: str
    event_type: str = Field(examples=["authentication"])
    client_id: str = Field(examples=["production_application"])
    action: str = Field(examples=["api_key_used"])
    success: bool
    ip_address: str = Field(examples=["203.0.113.42"])
    user_agent: str = Field(examples=["ProductionApp/1.0"])
    details: dict[str, Any] = Field(examples=[{"endpoint": "/ains/tasks", "method": "POST"}])
    created_at: str
    principal_id: str
    username: str
    request_id: str
    number: int
    previous_hash: str
    hash: str


class LogPage(BaseModel):
    """Newest first."""

    logs: list[LogEntry]
    total: int
    limit: int
    offset: int
    has_more: bool


def shown(entry: Entry, who: Principal) -> LogEntry:
    """An entry as `who` may see it: where another person sits is nobody's business but an admin's."""
    own = who.is_admin or entry.actor in ("", who.owner) or entry.actor.startswith("client_")
    return LogEntry(
        log_id=entry.log_id, event_type=entry.event_type, client_id=entry.client_id, action=entry.action,
        success=entry.success, ip_address=entry.ip_address if own else "", user_agent=entry.user_agent if own else "",
        details=told(entry), created_at=iso(entry.created_at), principal_id=entry.principal_id,
        username=entry.username, request_id=entry.request_id, number=entry.number, previous_hash=entry.previous,
        hash=entry.hash,
    )  # fmt: skip


def one_of(value: str, allowed: tuple[str, ...], field: str) -> str:
    """The value, if it is empty or known. Raises `Invalid`."""
    if value and value not in allowed:
        raise Invalid(f"{field}: no such value", field=field, allowed_values=list(allowed))
    return value


Word = Annotated[str, Query(max_length=128, pattern=r"^[^\x00-\x1f]*$")]


@router.get("")
async def audit_logs(
    who: SignedIn, core: FromCore, client_id: Word = "", event_type: Word = "", start_date: datetime | None = None,
    end_date: datetime | None = None, action: Word = "", success: bool | None = None, ip_address: Word = "",
    limit: Limit50 = 50, offset: Offset = 0,
) -> LogPage:  # fmt: skip
    """The audit log: an admin's page has everybody's entries, any other the caller's and those of their clients."""
    since, until = aware(start_date), aware(end_date)
    if since is not None and until is not None and since > until:
        raise Invalid("start_date is after end_date", field="start_date")
    wanted = Filter(
        client_id=client_id, event_type=one_of(event_type, EVENT_TYPES, "event_type"),
        action=one_of(action, ACTIONS, "action"), success=success, ip_address=ip_address, since=since, until=until,
    )  # fmt: skip
    page = await core.audit.page(who, wanted, offset, limit)
    return LogPage(
        logs=[shown(entry, who) for entry in page.items], total=page.total, limit=limit, offset=offset,
        has_more=more(offset, len(page.items), page.total),
    )  # fmt: skip
