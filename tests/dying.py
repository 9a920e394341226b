"""A client that is killed at a commit: what it had sent is done, what it had not is not."""

import asyncio

from cluster.store import Store, Write


class Dying(Store):
    """A store whose client is killed before, or after, its n-th commit."""

    def __init__(self, url: str, at: int, after: bool) -> None:
        super().__init__(url)
        self.left, self.after = at, after

    async def commit(self, *writes: Write) -> bool:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise asyncio.CancelledError
        done = await super().commit(*writes)
        if self.left == 0:
            raise asyncio.CancelledError
        return done
