"""A worker that registered itself: an AINS agent. Farm clients and fog nodes join the same record later."""

from datetime import datetime
from typing import Any, ClassVar, Literal

from pydantic import Field

from cluster.store import Index, Record

DEFAULT_CONCURRENCY = 1
PULL = "pull:"  # as an endpoint: the agent takes its tasks itself


class Agent(Record):
    """Who may be given tasks, for which capabilities, and where to send them."""

    kind: ClassVar[str] = "agent"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index("list", score=lambda a: a.created_at.timestamp(), parts=lambda a: [("all",), ("status", a.status)]),
        Index(
            "tag", score=lambda a: a.created_at.timestamp(),
            parts=lambda a: [(tag,) for tag in set(a.tags)],
        ),
    )  # fmt: skip

    agent_id: str
    owner: str
    display_name: str
    public_key: str  # PEM
    endpoint: str
    tags: tuple[str, ...]
    metadata: dict[str, Any] = {}
    max_concurrent_tasks: int = Field(DEFAULT_CONCURRENCY, ge=1, le=10_000)
    status: Literal["active", "inactive"] = "active"
    created_at: datetime
    last_seen_at: datetime

    @property
    def pulls(self) -> bool:
        """Whether it takes its tasks itself; else they are sent to its endpoint."""
        return self.endpoint == PULL
