"""Pages as the document has them: `?page=` and `?limit=`, and headers that say how many there are."""

from typing import Annotated

from fastapi import Query, Request, Response

Page = Annotated[int, Query(ge=1, le=1_000_000, description="Which page, from 1 on")]
Limit = Annotated[int, Query(ge=1, le=100, description="Results per page")]
HEADERS = {
    "X-Total-Count": {"description": "Results in all", "schema": {"type": "integer"}},
    "X-Page-Count": {"description": "Pages in all", "schema": {"type": "integer"}},
    "Link": {"description": "The `first`, `prev`, `next` and `last` page (RFC 8288)", "schema": {"type": "string"}},
}  # fmt: skip


def say(request: Request, response: Response, page: int, limit: int, total: int) -> None:
    """Put the headers of this page on the answer."""
    last = max(1, -(-total // limit))
    links = {"first": 1, "prev": min(page - 1, last), "next": page + 1, "last": last}
    told = [
        f'<{request.url.include_query_params(page=number, limit=limit)}>; rel="{name}"'
        for name, number in links.items()
        if 1 <= number <= last
    ]
    response.headers["X-Total-Count"] = str(total)
    response.headers["X-Page-Count"] = str(-(-total // limit))
    response.headers["Link"] = ", ".join(told)
