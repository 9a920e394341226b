"""The events that webhooks themselves cause. Their data hold no secret, and of the URL, which may be one, the host."""

from datetime import datetime
from typing import Any

from yarl import URL

from cluster.events import Event
from cluster.webhooks.model import Webhook


def changed(hook: Webhook, at: datetime, kind: str, **data: Any) -> Event:
    """The event of what was done to a webhook, or with it."""
    told = {
        "webhook_id": hook.webhook_id, "host": URL(hook.url).host, "events": list(hook.events),
        "agent_id": hook.agent_id, "active": hook.active,
    }  # fmt: skip
    return Event(kind=kind, subject=hook.webhook_id, owner=hook.owner, at=at, data=told | data)
