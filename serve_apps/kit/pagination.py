"""Pages of lists, as query parameters."""

from typing import Annotated

from fastapi import Query

Offset = Annotated[int, Query(ge=0, le=1_000_000, description="Number of results to skip")]
Limit10 = Annotated[int, Query(ge=1, le=50, description="Results per page")]
Limit20 = Annotated[int, Query(ge=1, le=100, description="Results per page")]
Limit50 = Annotated[int, Query(ge=1, le=100, description="Results per page")]


def more(offset: int, shown: int, total: int) -> bool:
    """Whether there is a following page."""
    return offset + shown < total
