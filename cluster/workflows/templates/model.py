"""A template, and the rule of how a task's own data go over its defaults. Pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

from pydantic import Field

from cluster.events import Event
from cluster.routing.strategies import DEFAULT
from cluster.store import Index, Record
from cluster.workflows.model import Author, shelves


class Template(Record):
    """A task with defaults."""

    kind: ClassVar[str] = "template"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index("list", score=lambda t: t.created_at.timestamp(), parts=lambda t: shelves(t.author.owner, t.client_id)),
    )

    template_id: str
    author: Author
    client_id: str
    name: str
    description: str = ""
    task_type: str
    capability_required: str
    default_input_data: dict[str, Any] = {}
    default_priority: int = Field(5, ge=1, le=10)
    default_timeout: int = Field(300, ge=1, le=86_400)
    default_max_retries: int = Field(3, ge=0, le=10)
    default_routing_strategy: str = DEFAULT
    default_trust_min: float = Field(0.0, ge=0, le=1)
    default_heartbeat_seconds: int = Field(0, ge=0, le=86_400)
    default_metadata: dict[str, Any] = {}
    times_used: int = 0
    last_used_at: datetime | None = None
    created_at: datetime
    updated_at: datetime


def merged(default: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`own` over `default`: objects merge, however deep; anything else, a list too, is replaced."""
    result = dict(default)
    for name, value in own.items():
        under = result.get(name)
        both = isinstance(under, Mapping) and isinstance(value, Mapping)
        result[name] = merged(under, value) if both else value  # pyright: ignore[reportArgumentType]
    return result


def told(template: Template, kind: str, at: datetime) -> Event:
    """An event about a template."""
    data = {
        "template_id": template.template_id, "client_id": template.client_id, "name": template.name,
        "task_type": template.task_type,
    }  # fmt: skip
    return Event(kind=kind, subject=template.template_id, owner=template.author.owner, at=at, data=data)
