"""Where a change comes from: who asked, from which address, in which trace. Every event carries it.

The gateway sets it for a request, a loop for the event that it works on; the store stamps it on what is committed
meanwhile. So the audit log and the traces know of every change without each service handing it down.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pydantic import BaseModel, ConfigDict


class Origin(BaseModel):
    """What is known of whoever caused a change."""

    model_config = ConfigDict(frozen=True)

    principal_id: str = ""
    client_id: str = ""  # of an API key
    username: str = ""
    address: str = ""
    user_agent: str = ""
    method: str = ""
    endpoint: str = ""  # the path as it came
    request_id: str = ""
    traceparent: str = ""  # W3C Trace Context


_CURRENT: ContextVar[Origin | None] = ContextVar("village.origin", default=None)


def current() -> Origin | None:
    """Of the request or event that this task works on; None for what the village does by itself."""
    return _CURRENT.get()


@contextmanager
def within(origin: Origin | None) -> Iterator[None]:
    """Whatever is committed inside comes from `origin`."""
    token = _CURRENT.set(origin)
    try:
        yield
    finally:
        _CURRENT.reset(token)
