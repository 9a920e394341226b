"""Webhooks and their deliveries, as they are kept."""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from cluster.events.model import START
from cluster.store import Index, Record


class Secret(BaseModel):
    """A signing secret; `until` is when a rotated one stops signing. Kept as it is, for signing needs its text."""

    model_config = ConfigDict(frozen=True)

    value: str = Field(repr=False)
    until: datetime | None = None


def _lists(hook: "Webhook") -> Iterable[tuple[str, ...]]:
    yield ("all",)
    yield ("owner", hook.owner)
    if hook.agent_id:
        yield ("all", "agent", hook.agent_id)
        yield ("owner", hook.owner, "agent", hook.agent_id)


class Webhook(Record):
    """Which events of whom go where."""

    kind: ClassVar[str] = "webhook"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index("list", score=lambda h: h.created_at.timestamp(), parts=_lists),
        Index("active", score=lambda h: h.created_at.timestamp(), parts=lambda h: [()] if h.active else []),
    )

    webhook_id: str
    owner: str
    created_by: str  # principal id: a webhook is silent while its user is disabled
    url: str
    events: tuple[str, ...]
    agent_id: str = ""  # only events about this agent
    all_owners: bool = False  # an admin's, for everybody's events
    active: bool = True
    description: str = ""
    secrets: tuple[Secret, ...]  # newest first
    since: str = START  # only events after this one, by their place in the stream and nobody's clock
    failures: int = 0  # deliveries that failed one after the other
    failing_since: datetime | None = None
    disabled_at: datetime | None = None  # by the village, not by its owner
    disabled_reason: str = ""
    created_at: datetime
    updated_at: datetime


class DeliveryState(StrEnum):
    """Where a delivery is."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class Attempt(BaseModel):
    """One call of the receiver. `status` is None where there was no answer; `excerpt` is the head of its body."""

    model_config = ConfigDict(frozen=True)

    number: int
    at: datetime
    duration_ms: float
    status: int | None = None
    excerpt: str = ""
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether the receiver has it."""
        return self.status is not None and 200 <= self.status < 300


def _shelves(delivery: "Delivery") -> Iterable[tuple[str, ...]]:
    yield (delivery.webhook_id,)
    yield (delivery.webhook_id, delivery.state)


class Delivery(Record):
    """One event for one webhook, and every attempt to bring it there."""

    kind: ClassVar[str] = "delivery"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index("list", score=lambda d: d.created_at.timestamp(), parts=_shelves),
        Index("due", score=lambda d: d.next_at.timestamp(), parts=lambda d: [(d.webhook_id,)] if d.next_at else []),
    )

    delivery_id: str
    webhook_id: str
    event: str
    event_id: str
    data: dict[str, Any] = {}
    traceparent: str = ""
    state: DeliveryState = DeliveryState.PENDING
    tries: int = 0  # since the beginning, or since the last replay
    attempt_count: int = 0
    attempts: tuple[Attempt, ...] = ()  # the last ones
    next_at: datetime | None = None  # when pending: from then on a dispatcher may take it
    claim: str = ""  # of the dispatcher that has it now, until `next_at`
    error: str = ""  # why it failed without an attempt
    created_at: datetime  # when the event happened
    finished_at: datetime | None = None


def delivery_id(webhook_id: str, event_id: str) -> str:
    """Follows from both, so that no event is recorded twice for a webhook however often it is read."""
    return f"dlv_{webhook_id.removeprefix('wh_')}_{event_id.removeprefix('evt_')}"
