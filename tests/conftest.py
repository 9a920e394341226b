"""Fixtures that every kind of test may use. Redis is always a real server of the test session's own."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from cluster import logs
from cluster.errors import Unavailable
from cluster.store import Store, server

# A shared machine may stall for longer than any deadline; what is slow is found by the tests' durations.
settings.register_profile("village", deadline=None)
# The same examples wherever the suite runs: a change is judged, and not the day. `VILLAGE_EXPLORE=1` looks further.
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile("village" if os.environ.get("VILLAGE_EXPLORE") else "same")
logs.configure("test")


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A private redis-server on a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="village-test-") as name:
        directory = Path(name)
        process = server.start(directory, directory / "redis.sock")
        try:
            asyncio.run(answers(f"unix://{directory}/redis.sock"))
            yield f"unix://{directory}/redis.sock"
        finally:
            process.kill()
            process.wait()


async def answers(url: str, within_seconds: float = 10) -> None:
    """Return once the server answers."""
    store = Store(url)
    deadline = asyncio.get_running_loop().time() + within_seconds
    while True:
        try:
            await store.ping()
            break
        except Unavailable:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.02)
    await store.close()


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    """An empty store."""
    connected = Store(redis_url)
    await connected._redis.flushall()
    yield connected
    await connected.close()
