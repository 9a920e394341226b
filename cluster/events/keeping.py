"""The loop of whoever reads the stream and keeps something of it: from its cursor, for ever."""

import asyncio
from typing import Protocol

from cluster.errors import Unavailable
from cluster.presence import BEAT_SECONDS


class StreamReader(Protocol):
    """Something with a cursor."""

    async def open(self) -> None:
        """Find the place where the last one stopped."""
        ...

    async def step(self) -> int:
        """Read one batch, and keep what is wanted of it."""
        ...

    async def beat(self) -> None:
        """Say that it lives, and how far it is."""
        ...


async def keep(reader: StreamReader) -> None:
    """Read batch after batch; after the store was away, from the cursor again."""
    opened, beaten = False, 0.0
    while True:
        try:
            if not opened:
                await reader.open()
                opened = True
            await reader.step()
            if (now := asyncio.get_running_loop().time()) - beaten >= BEAT_SECONDS:
                beaten = now
                await reader.beat()
        except Unavailable:
            opened = False
            await asyncio.sleep(0.2)
