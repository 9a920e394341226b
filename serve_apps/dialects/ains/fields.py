"""What the bodies and lists of tasks, chains, schedules and templates have in common."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import Query
from pydantic import Field

from cluster.clock import iso
from serve_apps.kit.pagination import more

Name = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(max_length=2000)]
Data = dict[str, Any]
Priority = Annotated[int, Field(ge=1, le=10)]
Timeout = Annotated[int, Field(ge=1, le=3600)]
LongTimeout = Annotated[int, Field(ge=1, le=86_400)]
Retries = Annotated[int, Field(ge=0, le=10)]
TrustMin = Annotated[float, Field(ge=0, le=1, description="No agent below it gets the task")]
Silence = Annotated[
    int, Field(ge=0, le=86_400, description="A running agent that is silent for longer loses the task; 0: no such rule")
]
Strategy = Annotated[str, Field(max_length=100)]
ClientFilter = Annotated[str, Query(max_length=200)]


def stamp(at: datetime | None) -> str | None:
    """A time, or null."""
    return None if at is None else iso(at)


def paged(results: list[dict[str, Any]], total: int, limit: int, offset: int) -> dict[str, Any]:
    """The document's list."""
    further = more(offset, len(results), total)
    return {
        "results": results,
        "pagination": {
            "total": total, "limit": limit, "offset": offset, "has_more": further,
            "next_offset": offset + limit if further else None,
        },
    }  # fmt: skip
