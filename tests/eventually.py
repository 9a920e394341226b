"""Waiting for what other tasks or processes bring about: polls, with a deadline, and tells what it saw last."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any


async def eventually(probe: Callable[[], Any], within: float = 5.0) -> Any:
    """What `probe` (plain or async) returns once that is true. Raises AssertionError after `within` seconds."""
    deadline = asyncio.get_running_loop().time() + within
    while True:
        seen = probe()
        if inspect.isawaitable(seen):
            seen = await seen
        if seen:
            return seen
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not within {within} s; last seen: {seen!r}")
        await asyncio.sleep(0.01)
