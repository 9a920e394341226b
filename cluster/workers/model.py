"""A worker that registered itself: an AINS agent. Farm clients and fog nodes join the same record later."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, ClassVar, Literal

from pydantic import Field

from cluster.store import Index, Record

DEFAULT_CONCURRENCY = 1
DEFAULT_TTL_SECONDS = 600
TTL_SECONDS = (10, 86_400)  # the shortest and the longest that an agent may choose
PULL = "pull:"  # as an endpoint: the agent takes its tasks itself
Health = Literal["ACTIVE", "DEGRADED", "OFFLINE"]  # what a heartbeat may say


def _lists(agent: "Agent") -> Iterable[tuple[str, ...]]:
    yield ("all",)
    yield ("status", agent.status)
    yield ("owner", agent.owner)


class Agent(Record):
    """Who may be given tasks, for which capabilities, and where to send them."""

    kind: ClassVar[str] = "agent"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index("list", score=lambda a: a.created_at.timestamp(), parts=_lists),
        Index("tag", score=lambda a: a.created_at.timestamp(), parts=lambda a: [(tag,) for tag in set(a.tags)]),
        Index("expiry", score=lambda a: a.expires_at.timestamp(), parts=lambda a: [()] if a.expires else []),
    )

    agent_id: str
    owner: str
    display_name: str
    public_key: str  # PEM
    endpoint: str
    tags: tuple[str, ...]
    metadata: dict[str, Any] = {}
    max_concurrent_tasks: int = Field(DEFAULT_CONCURRENCY, ge=1, le=10_000)
    status: Literal["active", "inactive"] = "active"
    reason: str = ""  # why it is inactive
    retired: bool = False  # deactivated by its owner: no sign of life brings it back, only another registration
    ttl_seconds: int = Field(DEFAULT_TTL_SECONDS, ge=TTL_SECONDS[0], le=TTL_SECONDS[1])
    expires_at: datetime | None = None  # silent until then, it is taken for gone; None: nothing is expected of it
    heartbeat_at: datetime | None = None
    health: Health = "ACTIVE"
    metrics: dict[str, Any] = {}  # as its last heartbeat said
    resources: dict[str, Any] = {}
    created_at: datetime
    last_seen_at: datetime

    @property
    def expires(self) -> bool:
        """Whether its silence ends something."""
        return self.status == "active" and self.expires_at is not None

    @property
    def pulls(self) -> bool:
        """Whether it takes its tasks itself; else they are sent to its endpoint."""
        return self.endpoint == PULL
