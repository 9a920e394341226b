"""The gateway: the root ASGI app. Request ids, metrics, the only lifespan, and dispatch to the owner of a path."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster import tracing
from serve_apps.core import Core
from serve_apps.dialects import DIALECTS
from serve_apps.kit import forwarded, witness
from serve_apps.kit.call import KEY, Call, request_id_from
from serve_apps.kit.dialect import Dialect, DialectApp
from serve_apps.kit.openapi import Documents

log = structlog.get_logger()


def build_gateway(core: Core, dialects: Sequence[Dialect] = DIALECTS) -> "Gateway":
    """The app of one replica. The first dialect also answers for paths that nobody owns."""
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
        self._entry: ASGIApp = tracing.served(self._answer)
        self._trusted = core.settings.trusted_networks
        self._traced, self._logged = tracing.on(), core.settings.access_log

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
        forwarded.resolve(scope, self._trusted)
        await self._entry(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.perf_counter()
        given = next((v.decode("latin-1") for n, v in scope["headers"] if n == b"x-request-id"), "")
        call = Call(self.core, request_id_from(given), self.core.clock())
        scope[KEY] = call
        owner = self.owner(scope)
        told = structlog.contextvars.bind_contextvars(request_id=call.request_id, dialect=dialect_of(owner))
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
                if self._traced:  # here, because the span ends with the last byte
                    describe(call, owner, scope)
                if kind == "websocket.accept":
                    opened = True
                    self.core.metrics.socket(+1)
            await send(message)

        try:
            await owner(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - begun
            method, endpoint = scope.get("method", "WS"), endpoint_of(scope)
            if opened:
                self.core.metrics.socket(-1)
            elif not call.lasting:
                # A socket lives for hours; its time would say nothing about how fast requests are answered.
                self.core.metrics.answered(method, endpoint, status or 499, seconds)
            if call.principal is not None and call.principal.client_id:
                witness.key_used(call, witness.template_of(owner, scope, endpoint), status or 499)
            if self._logged and scope["path"] not in tracing.ASKED_OFTEN:
                log.info("request", method=method, endpoint=endpoint, status=status or 499,
                         milliseconds=round(seconds * 1000, 2), principal_id=principal_of(call))  # fmt: skip
            structlog.contextvars.reset_contextvars(**told)

    async def closing(self) -> None:
        """The server is about to end: what stays open is told to come back elsewhere, which nobody else would do."""
        await asyncio.gather(self.core.connections.close(), self.core.waits.close())

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


def describe(call: Call, owner: ASGIApp, scope: Scope) -> None:
    """Say on the request's span what was asked, of whom and by whom."""
    endpoint = endpoint_of(scope)
    about = {
        "http.route": endpoint, "village.dialect": dialect_of(owner), "village.request_id": call.request_id,
        "village.principal_id": principal_of(call),
    }  # fmt: skip
    tracing.describe(f"{scope.get('method', 'WS')} {endpoint}", **about)


def endpoint_of(scope: Scope) -> str:
    """The template of the route that the request found: its path would be a label, or a name, without end."""
    return getattr(scope.get("route"), "path", None) or "unknown"


def dialect_of(app: ASGIApp) -> str:
    """The tag of the dialect that an app speaks; empty for a page that belongs to none."""
    return app.dialect.tag if isinstance(app, DialectApp) else ""


def principal_of(call: Call) -> str:
    """Who asked, for a log line; empty for a stranger."""
    return call.principal.principal_id if call.principal else ""
