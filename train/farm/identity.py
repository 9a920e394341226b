"""Who this worker is: its id, its folder with a lock, and the credential that it shows."""

import fcntl
import hashlib
import re
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from typing import IO

import aiohttp

from cluster.errors import Conflict, Invalid, Unauthenticated
from cluster.ids import new_id
from train.manifest import write_durably

CLIENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

KEY = re.compile(r"[0-9a-f]{32}")


def client_id(home: Path, given: str = "") -> str:
    """The given one, or this machine's in this home: made once, then kept in a file. Raises `Invalid`."""
    if given:
        if not CLIENT_ID.fullmatch(given):
            raise Invalid("a client id is 1 to 64 letters, digits, dots, dashes or underscores", field="client_id")
        return given
    machine = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12]  # a home may be shared by many machines
    file = home / "worker" / f"client-id-{machine}"
    with suppress(OSError):
        kept = file.read_text().strip()
        if CLIENT_ID.fullmatch(kept):
            return kept
    made = new_id("worker")
    write_durably(file, lambda out: out.write(made.encode()))
    return made


class Folder:
    """Where this worker keeps what a restart needs: `worker/<client id>/<key of the work>`; one worker at a time."""

    def __init__(self, home: Path, client: str) -> None:
        self.path = home / "worker" / client
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock: IO[bytes] | None = None

    def lock(self) -> None:
        """Until this process ends. Raises `Conflict`."""
        self._lock = (self.path / "lock").open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Conflict("another worker runs here under this client id; give one of them --client-id") from error

    def of(self, key: str) -> Path:
        """The folder of a piece of work. A key is a digest, whatever the farm calls the task. Raises ValueError."""
        if not KEY.fullmatch(key):
            raise ValueError(f"not a key: {key!r}")
        return self.path / key

    def forget(self, key: str) -> None:
        """Remove a piece of work."""
        shutil.rmtree(self.of(key), ignore_errors=True)

    def forget_others(self, key: str) -> None:
        """Remove every piece of work but this one: a disk should not fill with tasks that went elsewhere."""
        for path in self.path.iterdir():
            if path.is_dir() and path.name != key:
                shutil.rmtree(path, ignore_errors=True)


class Credential:
    """A token, a key, or a name and password that a token is had for."""

    def __init__(self, token: str = "", api_key: str = "", username: str = "", password: str = "") -> None:
        self._token, self._key = token, api_key
        self._username, self._password = username, password

    @property
    def renewable(self) -> bool:
        """Whether there is a password to sign in with."""
        return bool(self._username and self._password)

    async def headers(self, http: aiohttp.ClientSession, gateway: str) -> dict[str, str]:
        """The header that says who this is; signs in where there is no token yet.

        Raises `Unauthenticated`, `aiohttp.ClientError`, `TimeoutError`.
        """
        if self._key:
            return {"X-API-Key": self._key}
        if not self._token and self.renewable:
            self._token = await self._sign_in(http, gateway)
        return {"Authorization": f"Bearer {self._token}"}

    def refused(self) -> None:
        """It was not taken: sign in anew the next time. Raises `Unauthenticated` where that cannot be."""
        if self._key or not self.renewable:
            raise Unauthenticated("the village does not take this credential, or not under this client id")
        self._token = ""

    async def _sign_in(self, http: aiohttp.ClientSession, gateway: str) -> str:
        body = {"username": self._username, "password": self._password}
        async with http.post(f"{gateway}/auth/token", json=body, allow_redirects=False) as answer:
            if answer.status in (400, 401, 403, 422):
                raise Unauthenticated("the village does not take this name and password")
            answer.raise_for_status()
            content = await answer.json()
        told = content.get("data", content) if isinstance(content, dict) else {}
        if answer.status >= 300 or not isinstance(told, dict) or not isinstance(told.get("access_token"), str):
            raise Unauthenticated("signing in gave no token; for an account with a second factor use an API key")
        return told["access_token"]
