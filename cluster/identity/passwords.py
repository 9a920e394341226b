"""Passwords: argon2id, off the event loop, and the same work for a user that does not exist.

The rules are those of NIST SP 800-63B: a length, no rules of composition, nothing that everybody tries first.
"""

import asyncio
import secrets
import unicodedata

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from cluster.errors import Invalid

AT_ONCE = 2  # each check takes 64 MiB for a moment
SHORTEST, LONGEST = 8, 1024  # characters
COMMON = """
password password1 password12 password123 passw0rd p@ssw0rd p@ssword 12345678 123456789 1234567890 12341234
11111111 00000000 88888888 87654321 11223344 123123123 1q2w3e4r 1q2w3e4r5t 1qaz2wsx qwertyui qwertyuiop qwerty12
qwerty123 asdfghjk asdfghjkl zxcvbnm1 abc12345 abcd1234 a1b2c3d4 iloveyou sunshine princess football baseball
superman trustno1 starwars computer whatever michelle jennifer letmein1 welcome1 welcome123 admin123 admin1234
administrator changeme changeme1 default1 internet samsung1 aivillage aivillage1
"""


def check(password: str, username: str) -> None:
    """Return if a new password will do. Raises `Invalid`, which never repeats the password."""
    plain = _canonical(password).casefold()
    name = username.strip().casefold()
    if not SHORTEST <= len(password) <= LONGEST:
        why = f"{SHORTEST} to {LONGEST} characters are needed"
    elif plain in (name, name.partition("@")[0]):
        why = "the password must not be the username"
    elif plain in COMMON.split() or len(set(plain)) == 1:
        why = "the password is among those that are tried first"
    else:
        return
    raise Invalid(f"password: {why}", field="password", reason=why)


def _canonical(password: str) -> str:
    return unicodedata.normalize("NFKC", password)  # the same password from two keyboards is the same bytes


class Passwords:
    """Hash and check. argon2 releases the interpreter lock while it works."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()
        self._room = asyncio.Semaphore(AT_ONCE)
        self._decoy = ""

    async def hash(self, password: str) -> str:
        """The argon2id string to keep."""
        async with self._room:
            return await asyncio.to_thread(self._hasher.hash, _canonical(password))

    async def matches(self, kept: str | None, password: str) -> bool:
        """Whether `password` made `kept`. Without a `kept` the answer is no, after the same work."""
        if not kept:
            self._decoy = self._decoy or await self.hash(secrets.token_hex())
        async with self._room:
            return await asyncio.to_thread(self._verify, kept or self._decoy, _canonical(password)) and bool(kept)

    async def renewed(self, kept: str, password: str) -> str:
        """`kept`, or a new string where it was made with other parameters than are used now."""
        return await self.hash(password) if self._hasher.check_needs_rehash(kept) else kept

    def _verify(self, kept: str, password: str) -> bool:
        try:
            return self._hasher.verify(kept, password)
        except (VerificationError, InvalidHashError):
            return False
