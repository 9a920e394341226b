"""Passwords: argon2id, off the event loop, and the same time for a user that does not exist."""

import asyncio
import secrets

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

AT_ONCE = 2  # each check takes 64 MiB for a moment


class Passwords:
    """Hash and check. argon2 releases the interpreter lock while it works."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()
        self._room = asyncio.Semaphore(AT_ONCE)
        self._decoy = ""

    async def hash(self, password: str) -> str:
        """The argon2id string to keep."""
        async with self._room:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def matches(self, kept: str | None, password: str) -> bool:
        """Whether `password` made `kept`. Without a `kept` the answer is no, after the same work."""
        if not kept:
            self._decoy = self._decoy or await self.hash(secrets.token_hex())
        async with self._room:
            return await asyncio.to_thread(self._verify, kept or self._decoy, password) and bool(kept)

    def _verify(self, kept: str, password: str) -> bool:
        try:
            return self._hasher.verify(kept, password)
        except (VerificationError, InvalidHashError):
            return False
