"""Commands that go straight to the store, so that they also work while nothing serves."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from cluster.cli.client import Refused
from cluster.errors import VillageError
from cluster.settings import Settings
from cluster.store import Store

T = TypeVar("T")


def with_store(settings: Settings, work: Callable[[Store], Awaitable[T]]) -> T:
    """What `work` makes of the village's store. Raises `Refused` with the reason in words."""

    async def run() -> T:
        store = Store(settings.redis)
        try:
            return await work(store)
        finally:
            await store.close()

    try:
        return asyncio.run(run())
    except VillageError as error:
        raise Refused(error.message) from error
