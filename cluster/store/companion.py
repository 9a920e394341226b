"""A write that goes along with the first change that a request makes, so that "it was done" and what was done are one.

An Idempotency-Key needs this: whoever is killed between the change and noting the answer must not do it twice.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class Companion:
    """`write` is what goes along, a `Write`; None once it has gone. `lock` keeps its version still meanwhile."""

    def __init__(self) -> None:
        self.write: Any = None
        self.lock = asyncio.Lock()


_CURRENT: ContextVar[Companion | None] = ContextVar("village.companion", default=None)


def current() -> Companion | None:
    """Of the request that this task works on, if one waits to go along."""
    companion = _CURRENT.get()
    return companion if companion is not None and companion.write is not None else None


@contextmanager
def accompanied(by: Companion) -> Iterator[None]:
    """The first commit inside that tells an event takes the companion's write with it."""
    token = _CURRENT.set(by)
    try:
        yield
    finally:
        _CURRENT.reset(token)
