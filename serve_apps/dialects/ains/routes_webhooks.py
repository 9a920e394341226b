"""DukeNet AINS, webhook routes: parse, call the core, render."""

from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, BaseModel, Field

from cluster.clock import iso
from cluster.webhooks.catalogue import EVENTS, MAX_FILTERS
from cluster.webhooks.model import Attempt, Delivery, DeliveryState, Webhook
from cluster.webhooks.service import GRACE
from serve_apps.core import FromCore
from serve_apps.kit.auth import SignedIn
from serve_apps.kit.pagination import Limit50, Offset, more

router = APIRouter(prefix="/ains/webhooks")

Name = Annotated[str, Field(max_length=60)]
Names = Annotated[list[Name], Field(max_length=MAX_FILTERS, description=f"Of {', '.join(EVENTS)}; `task.*`; `*`")]
Url = Annotated[str, Field(max_length=2000)]
Given = Annotated[str, Field(max_length=256)]
AgentId = Annotated[str, Field(max_length=128)]
Text = Annotated[str, Field(max_length=500)]


class WebhookRequest(BaseModel):
    """Which events go where. Without a `secret` one is made, and shown in this answer only."""

    url: Url
    events: Names
    agent_id: AgentId | None = None
    secret: Given | None = None
    active: bool = True
    all_owners: bool = False
    description: Text = ""


class WebhookChange(BaseModel):
    """What is given changes. A `secret` is a rotation; `active: true` forgets what failed; no agent: an empty text."""

    url: Url | None = None
    events: Names | None = None
    agent_id: AgentId | None = None
    secret: Given | None = None
    active: bool | None = None
    all_owners: bool | None = None
    description: Text | None = None


class Rotation(BaseModel):
    """The new secret, or none to have one made; how long the former signs beside it."""

    secret: Given | None = None
    grace_seconds: int = Field(int(GRACE.total_seconds()), ge=0, le=7 * 86_400)


class ReplayRequest(BaseModel):
    """What happened from `start` to `end`, both included."""

    start: AwareDatetime
    end: AwareDatetime
    events: Names = ["*"]
    failed_only: bool = False


def stamp(at: datetime | None) -> str | None:
    """A time, or null."""
    return None if at is None else iso(at)


def shown(hook: Webhook) -> dict[str, Any]:
    """A webhook without its secrets."""
    return {
        "webhook_id": hook.webhook_id, "agent_id": hook.agent_id or None, "url": hook.url, "events": hook.events,
        "active": hook.active, "all_owners": hook.all_owners, "description": hook.description,
        "consecutive_failures": hook.failures, "disabled_at": stamp(hook.disabled_at),
        "disabled_reason": hook.disabled_reason or None, "created_at": iso(hook.created_at),
        "updated_at": iso(hook.updated_at),
    }  # fmt: skip


def attempted(attempt: Attempt) -> dict[str, Any]:
    """One call of the receiver."""
    return {
        "attempt": attempt.number, "attempted_at": iso(attempt.at), "success": attempt.ok,
        "response_status": attempt.status, "response_body": attempt.excerpt, "duration_ms": attempt.duration_ms,
        "error": attempt.error or None,
    }  # fmt: skip


def listed(delivery: Delivery) -> dict[str, Any]:
    """A delivery with what its last attempt gave."""
    last = delivery.attempts[-1] if delivery.attempts else None
    return {
        "delivery_id": delivery.delivery_id, "webhook_id": delivery.webhook_id, "event": delivery.event,
        "event_id": delivery.event_id, "status": delivery.state, "attempts": delivery.attempt_count,
        "response_status": last.status if last else None, "response_body": last.excerpt if last else None,
        "duration_ms": last.duration_ms if last else None,
        "error": delivery.error or (last.error if last else "") or None, "created_at": iso(delivery.created_at),
        "last_attempt_at": iso(last.at) if last else None, "next_attempt_at": stamp(delivery.next_at),
        "completed_at": stamp(delivery.finished_at),
    }  # fmt: skip


def in_full(delivery: Delivery) -> dict[str, Any]:
    """A delivery with its data and every attempt that is kept."""
    return listed(delivery) | {"data": delivery.data, "history": [attempted(each) for each in delivery.attempts]}


@router.post("", status_code=201, responses={404: {}})
async def create_webhook(body: WebhookRequest, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Have events sent to a URL."""
    hook, generated = await core.webhooks.create(
        who, url=body.url, filters=body.events, agent_id=body.agent_id or "", secret=body.secret or "",
        active=body.active, all_owners=body.all_owners, description=body.description,
    )  # fmt: skip
    return shown(hook) | ({"secret": generated} if generated else {})


@router.get("")
async def list_webhooks(
    who: SignedIn, core: FromCore, agent_id: Annotated[str, Query(max_length=128)] = "", limit: Limit50 = 50,
    offset: Offset = 0,
) -> dict[str, Any]:  # fmt: skip
    """Webhooks, newest first."""
    page = await core.webhooks.page(who, agent_id, offset, limit)
    return {
        "webhooks": [shown(hook) for hook in page.items], "total": page.total, "limit": limit, "offset": offset,
        "has_more": more(offset, len(page.items), page.total),
    }  # fmt: skip


@router.get("/{webhook_id}")
async def get_webhook(webhook_id: str, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """A webhook; its secret is never shown."""
    return shown(await core.webhooks.get(who, webhook_id))


@router.patch("/{webhook_id}")
async def update_webhook(webhook_id: str, body: WebhookChange, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Change a webhook, or switch it off and on."""
    given = dict(body)
    return shown(await core.webhooks.update(who, webhook_id, filters=given.pop("events"), **given))


@router.delete("/{webhook_id}")
async def delete_webhook(webhook_id: str, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Remove a webhook and all that waits to be sent."""
    hook = await core.webhooks.delete(who, webhook_id)
    return {"webhook_id": hook.webhook_id, "deleted_at": iso(core.clock()), "message": "Webhook deleted successfully"}


@router.post("/{webhook_id}/rotate-secret")
async def rotate_secret(webhook_id: str, who: SignedIn, core: FromCore, body: Rotation | None = None) -> dict[str, Any]:
    """Sign with a new secret, and with the former beside it for a while."""
    given = body.secret if body and body.secret else ""
    grace = timedelta(seconds=body.grace_seconds) if body else GRACE
    hook, secret = await core.webhooks.rotate(who, webhook_id, given, grace)
    answer = {
        "webhook_id": hook.webhook_id, "rotated_at": iso(hook.updated_at),
        "previous_secret_until": iso(hook.updated_at + grace),
    }  # fmt: skip
    return answer if given else answer | {"secret": secret}


@router.post("/{webhook_id}/test")
async def test_webhook(webhook_id: str, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Send a `webhook.test` event now, and say what came of it."""
    return listed(await core.webhooks.test(who, webhook_id))


@router.get("/{webhook_id}/deliveries")
async def list_deliveries(
    webhook_id: str, who: SignedIn, core: FromCore, status: DeliveryState | None = None, limit: Limit50 = 50,
    offset: Offset = 0,
) -> dict[str, Any]:  # fmt: skip
    """What was sent, newest first."""
    page = await core.webhooks.deliveries(who, webhook_id, status, offset, limit)
    return {
        "webhook_id": webhook_id, "deliveries": [listed(delivery) for delivery in page.items], "total": page.total,
        "limit": limit, "offset": offset, "has_more": more(offset, len(page.items), page.total),
    }  # fmt: skip


@router.get("/{webhook_id}/deliveries/{delivery_id}")
async def get_delivery(webhook_id: str, delivery_id: str, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """A delivery with its data and attempts."""
    return in_full(await core.webhooks.delivery(who, webhook_id, delivery_id))


@router.post("/{webhook_id}/deliveries/{delivery_id}/replay", status_code=202)
async def replay_delivery(webhook_id: str, delivery_id: str, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Send a delivery again, with the same ids."""
    return listed(await core.webhooks.replay(who, webhook_id, delivery_id))


@router.post("/{webhook_id}/replay", status_code=202)
async def replay_range(webhook_id: str, body: ReplayRequest, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Send again what happened in a span of time."""
    count = await core.webhooks.replay_range(who, webhook_id, body.start, body.end, body.events, body.failed_only)
    return {"webhook_id": webhook_id, "replayed": count, "start": iso(body.start), "end": iso(body.end)}
