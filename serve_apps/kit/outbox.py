"""The way out to one peer: in order, bounded, and whoever puts something in never waits for who takes it out."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from starlette.websockets import WebSocketDisconnect

ROOM = 512  # messages that a peer may fall behind
ROOM_BYTES = 1 << 20
SEND_SECONDS = 10.0  # a peer that takes nothing for so long is gone


class Outbox:
    """Messages of one peer.

    `send` waits for the peer; `now` does not, and says whether it was sent: an outbox that is not behind has no task.
    `lost(stalled)` is called once, when the peer cannot keep up: after it has had everything that was waiting, or with
    `stalled` when it does not take even that.
    """

    def __init__(
        self,
        send: Callable[[bytes], Awaitable[None]],
        lost: Callable[[bool], None],
        now: Callable[[bytes], bool] | None = None,
    ) -> None:
        self._send, self._lost, self._now = send, lost, now
        self._waiting: deque[bytes] | tuple[()] = ()  # most peers are never behind: a deque is made when one is
        self._bytes = 0
        self._draining: asyncio.Task[None] | None = None
        self._moved: asyncio.Event | None = None  # while somebody waits for room
        self.full = False

    def put(self, message: bytes) -> bool:
        """Send it after what was put before. False if the peer is too far behind: it gets nothing more from now on."""
        if self.full:
            return False
        if self._draining is None and self._now is not None and self._now(message):
            return True
        if self._waiting and (len(self._waiting) >= ROOM or self._bytes + len(message) > ROOM_BYTES):
            self.full = True
            return False
        if not self._waiting:
            self._waiting = deque()
        self._waiting.append(message)
        self._bytes += len(message)
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return True

    async def room(self) -> None:
        """Return once half of the room is free, or there is no sense in waiting."""
        while self._draining is not None and (len(self._waiting) > ROOM // 2 or self._bytes > ROOM_BYTES // 2):
            self._moved = self._moved or asyncio.Event()
            await self._moved.wait()

    async def flush(self, within_seconds: float) -> None:
        """Return once all is sent, or the time is up."""
        if self._draining is not None:
            await asyncio.wait((self._draining,), timeout=within_seconds)

    def close(self) -> None:
        """Drop what is waiting."""
        self.full = True
        self._waiting, draining, self._draining = (), self._draining, None
        if draining is not None:
            draining.cancel()
        self._tell()

    async def _drain(self) -> None:
        stalled = gone = False
        try:
            while self._waiting:
                message = self._waiting.popleft()
                async with asyncio.timeout(SEND_SECONDS):
                    await self._send(message)
                self._bytes -= len(message)
                self._tell()
        except TimeoutError:
            stalled = True
        except (WebSocketDisconnect, OSError):  # whoever listens to the peer learns that it left
            gone = True
        finally:
            self._draining = None
            self._tell()
        if stalled or (self.full and not gone):
            self.full = True
            self._lost(stalled)

    def _tell(self) -> None:
        if self._moved is not None:
            self._moved.set()
            self._moved = None
