"""An answer that is found at most once in a while, however many ask for it at once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Fresh(Generic[T]):
    """What `find` said, at most `seconds` ago. Whoever comes while it is being found waits for that."""

    def __init__(self, find: Callable[[], Awaitable[T]], seconds: float = 1.0) -> None:
        self.find, self.seconds = find, seconds
        self._found: tuple[float, T] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def get(self) -> T:
        """The answer. Raises what `find` raises, which is not kept."""
        now = asyncio.get_running_loop().time
        async with self._one_at_a_time:
            if self._found is None or now() - self._found[0] >= self.seconds:
                found = await self.find()
                self._found = (now(), found)
            return self._found[1]
