"""Files to and from the gateway: streamed, patient, and only ever with the gateway itself.

The credential goes nowhere else: an address of a task's is a path of this gateway, and a redirect is not followed.
"""

import asyncio
import os
import random
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import orjson

from cluster.errors import Invalid, VillageError
from train.farm.identity import Credential

T = TypeVar("T")
PIECE = 1 << 20
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
PATH = re.compile(r"/api/tasks/[A-Za-z0-9_~-][A-Za-z0-9._~-]*(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*(\?[A-Za-z0-9._~=&-]*)?")
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
PATIENCE = 3600.0  # s for which a transfer is tried again
SPARE = 256 * PIECE  # bytes of a disk that a download leaves free


class Refused(VillageError):
    """The gateway answered, and it was a no."""


class Backoff:
    """Pauses that double; up to a half of each is left to chance, so that a thousand workers do not come at once."""

    def __init__(self, first: float = 1.0, most: float = 60.0) -> None:
        self.first, self.most = first, most
        self._next = first

    def reset(self) -> None:
        """It went well."""
        self._next = self.first

    def pause(self) -> float:
        """Seconds to wait now."""
        now, self._next = self._next, min(self._next * 2, self.most)
        return now * random.uniform(0.5, 1.0)


class Gateway:
    """The village's HTTP interface, for files."""

    def __init__(self, url: str, credential: Credential, client_id: str, note: Callable[[str], None]) -> None:
        self.url, self.credential, self.client_id, self.note = url.rstrip("/"), credential, client_id, note
        self.http = aiohttp.ClientSession(timeout=TIMEOUT, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)

    async def close(self) -> None:
        """Give the connections back."""
        await self.http.close()

    async def headers(self) -> dict[str, str]:
        """Who calls. See `Credential.headers`."""
        return {"Client-ID": self.client_id, **await self.credential.headers(self.http, self.url)}

    def address(self, told: str) -> str:
        """A task's address of a checkpoint as a URL of this gateway: of a whole URL only the path counts.

        Raises `Invalid` for a path that is no checkpoint's.
        """
        path = re.sub(r"^https?://[^/?#]*", "", told)
        if not PATH.fullmatch(path) or ".." in path:
            raise Invalid(f"the task names {told[:100]!r}, which is not a checkpoint of this village")
        return self.url + path

    async def download(self, url: str, to: Path) -> None:
        """The file is there as a whole afterwards. Goes on trying while the gateway is away.

        Raises `Refused`, `VillageError`.
        """
        partial = to.with_name(f".{to.name}.part")
        to.parent.mkdir(parents=True, exist_ok=True)

        async def attempt() -> None:
            async with self.http.get(url, headers=await self.headers(), allow_redirects=False) as answer:
                await self._good(answer)
                with partial.open("wb") as file:
                    room = shutil.disk_usage(to.parent).free - SPARE
                    async for piece in answer.content.iter_chunked(PIECE):
                        room -= len(piece)
                        if room < 0:
                            raise VillageError("there is too little room on this disk for what the task needs")
                        await asyncio.to_thread(file.write, piece)
                os.replace(partial, to)

        try:
            await self._patiently(attempt)
        finally:
            partial.unlink(missing_ok=True)

    async def upload(self, file: Path, url: str) -> None:
        """Put the file there. Goes on trying while the gateway is away. Raises `Refused`."""
        size = await asyncio.to_thread(lambda: file.stat().st_size)

        async def attempt() -> None:
            headers = await self.headers() | {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
            async with self.http.put(url, data=pieces(file), headers=headers, allow_redirects=False) as answer:
                await self._good(answer)

        await self._patiently(attempt)

    async def _good(self, answer: aiohttp.ClientResponse) -> None:
        if answer.status == 401:
            self.credential.refused()
            raise aiohttp.ClientConnectionError("the token has expired")
        if answer.status in TRANSIENT:
            raise aiohttp.ClientConnectionError(f"the gateway answered {answer.status}")
        if not 200 <= answer.status < 300:
            raise Refused(f"the village answered {answer.status}: {await said(answer)}", status=answer.status)

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        backoff, now = Backoff(), asyncio.get_running_loop().time
        deadline = now() + PATIENCE
        while True:
            try:
                return await attempt()
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                if now() > deadline:
                    raise Refused(f"the village could not be reached: {error}") from error
                pause = backoff.pause()
                self.note(f"{type(error).__name__}: {error}; again in {pause:.1f} s")
            await asyncio.sleep(pause)


async def pieces(file: Path) -> AsyncIterator[bytes]:
    """The file, never the whole of it in memory."""
    with file.open("rb") as source:
        while piece := await asyncio.to_thread(source.read, PIECE):
            yield piece


async def said(answer: aiohttp.ClientResponse) -> str:
    """An error of any dialect in a few words."""
    start = await answer.content.read(4096)
    try:
        content: Any = orjson.loads(start)
        error = content.get("error", content)
        return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
    except (ValueError, AttributeError):
        return start.decode(errors="replace")[:300]
