"""A replica's own door: uvicorn on a Unix socket, in a thread with a loop of its own, behind HAProxy.

Serve keeps the replica (places, starts, checks, replaces it); requests do not pass through Serve's proxy, whose hop
costs more than most of our handlers (docs/adr/0003-front-door.md). The socket's folder is ours alone, so what arrives
came through the front door, whose headers say who sent it (`serve_apps/kit/forwarded.py`).
"""

import asyncio
import resource
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
import uvloop
from starlette.types import ASGIApp

from cluster import heap, logs, tracing
from cluster.front import take_slot
from cluster.settings import Settings
from serve_apps.kit.wire import Wire

START_SECONDS = 120.0
BEAT_TIMEOUT_SECONDS = 5.0


SERVED: dict[str, Any] = {
    "http": "httptools", "ws": Wire, "lifespan": "on", "access_log": False, "log_config": None, "log_level": "warning",
    "proxy_headers": False, "server_header": False, "backlog": 2048,
    "timeout_keep_alive": 75, "timeout_graceful_shutdown": 5,
    "ws_max_size": 1 << 20, "ws_ping_interval": 25, "ws_ping_timeout": 20,
    # A compressor for each socket costs more memory than all the rest of it, and events are short (docs/events.md).
    "ws_per_message_deflate": False,
}  # fmt: skip
OPEN_FILES = 65536


def configured(app: ASGIApp, **other: Any) -> uvicorn.Config:
    """How every replica serves; `other`: what a test or a benchmark has otherwise, such as an address."""
    return uvicorn.Config(app, **(SERVED | other))


def allow_open_files() -> None:
    """A connection is an open file, and the usual 1024 of them are few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Server(uvicorn.Server):
    """uvicorn that says when it takes requests, and tells an app with a `closing` that it is about to end."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None] = lambda: None) -> None:
        super().__init__(config)
        self._say_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        self._say_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn, which waits for streams that end by themselves, and cuts sockets off."""
        closing = getattr(self.config.app, "closing", None)
        if closing is not None:
            await closing()
        await super().shutdown(sockets)


class Listener:
    """Builds an app on its loop and serves it for as long as the process lives."""

    def __init__(self, settings: Settings, role: str, build: Callable[[], Awaitable[ASGIApp]]) -> None:
        logs.configure(role)
        tracing.configure(settings, role)
        self.settings, self.role, self.build = settings, role, build
        self.loop: asyncio.AbstractEventLoop | None = None
        self.failure: BaseException | None = None
        self._server: uvicorn.Server | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{role}-listener", daemon=True)

    def start(self) -> "Listener":
        """Returns once requests are taken; raises what kept it from that."""
        self._thread.start()
        if not self._started.wait(START_SECONDS):
            raise TimeoutError(f"the {self.role} did not start within {START_SECONDS:.0f} s")
        if self.failure is not None:
            raise self.failure
        return self

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._main())
        except BaseException as error:
            self.failure = error
        finally:
            self._started.set()

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        allow_open_files()
        app = await self.build()
        heap.settle()
        path, self.slot_lock = take_slot(self.settings, self.role)
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        door.bind(str(path))
        self._server = Server(configured(app), self._started.set)
        await self._server.serve(sockets=[door])

    async def call(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Run a coroutine on the listener's loop, from another one."""
        assert self.loop is not None
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_awaited(work), self.loop))

    async def check(self) -> None:
        """Raises when the loop is gone or does not turn."""
        if self.failure is not None or not self._thread.is_alive():
            raise RuntimeError(f"the {self.role} listener has ended") from self.failure
        async with asyncio.timeout(BEAT_TIMEOUT_SECONDS):
            await self.call(_nothing)

    def stop(self) -> None:
        """Take no more requests and end the ones in hand."""
        if self._server is not None:
            self._server.should_exit = True
            self._thread.join(10)


async def _nothing() -> None:
    return None


async def _awaited(work: Callable[[], Awaitable[Any]]) -> Any:
    return await work()
