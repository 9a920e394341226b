"""The gateway: the root ASGI app. Request ids, metrics, the only lifespan, and dispatch to the owner of a path."""

import time
from collections.abc import Awaitable, Callable, Sequence

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_apps.core import Core
from serve_apps.dialects import DIALECTS
from serve_apps.kit import logs
from serve_apps.kit.call import KEY, Call, request_id_from
from serve_apps.kit.dialect import Dialect, DialectApp
from serve_apps.kit.openapi import Documents

log = structlog.get_logger()


def build_gateway(core: Core, dialects: Sequence[Dialect] = DIALECTS) -> "Gateway":
    """The app of one replica. The first dialect also answers for paths that nobody owns."""
    logs.configure()
    return Gateway(core, [dialect.app(core) for dialect in dialects])


class Gateway:
    """Pure ASGI: a middleware class that buffers would get in the way of streams."""

    def __init__(self, core: Core, apps: Sequence[DialectApp]) -> None:
        self.core, self.apps = core, list(apps)
        self.documents = Documents(self.apps)
        self._exact: dict[str, ASGIApp] = {p: app for app in self.apps for p in app.dialect.owns if p[-1] != "/"}
        self._exact["/"] = self.apps[0]
        prefixes = [(p, app) for app in self.apps for p in app.dialect.owns if p[-1] == "/" and p != "/"]
        self._prefixes = sorted(prefixes, key=lambda pair: -len(pair[0]))

    def owner(self, scope: Scope) -> ASGIApp:
        """The app that the path belongs to."""
        path = scope["path"]
        if scope["type"] == "http" and path in self.documents.pages:
            return self.documents.pages[path]
        if path in self._exact:
            return self._exact[path]
        return next((app for prefix, app in self._prefixes if path.startswith(prefix)), self.apps[0])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        begun = time.perf_counter()
        given = next((v.decode("latin-1") for n, v in scope["headers"] if n == b"x-request-id"), "")
        call = Call(self.core, request_id_from(given), self.core.clock())
        scope[KEY] = call
        status = 0
        opened = False

        async def answer(message: Message) -> None:
            nonlocal status, opened
            kind = message["type"]
            if kind in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
                message.setdefault("headers", [])
                headers = MutableHeaders(scope=message)
                headers.raw.append((b"x-request-id", call.request_id.encode()))
                headers.raw.extend(call.headers)
                status = message.get("status", 101)
                if kind == "websocket.accept":
                    opened = True
                    self.core.metrics.socket(+1)
            await send(message)

        try:
            await self.owner(scope)(scope, receive, answer)
        finally:
            if opened:
                self.core.metrics.socket(-1)
            route = scope.get("route")
            endpoint = getattr(route, "path", None) or "unknown"
            method = scope.get("method", "WS")
            if not opened:
                # A socket lives for hours; its time would say nothing about how fast requests are answered.
                self.core.metrics.answered(method, endpoint, status or 499, time.perf_counter() - begun)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        steps: dict[str, Callable[[], Awaitable[None]]] = {"startup": self.core.start, "shutdown": self.core.close}
        while True:
            step = (await receive())["type"].removeprefix("lifespan.")
            try:
                await steps[step]()
            except Exception as error:
                log.exception("the gateway's lifespan failed", step=step)
                await send({"type": f"lifespan.{step}.failed", "message": str(error)})
                return
            await send({"type": f"lifespan.{step}.complete"})
            if step == "shutdown":
                return
