"""Endpoints that a document names and nobody has built: they say so in their dialect, to signed-in callers only."""

from collections.abc import Iterable

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from cluster.errors import NotBuilt
from serve_apps.kit.routing import template


async def not_built() -> None:
    """501."""
    raise NotBuilt("this endpoint is documented, and not built yet")


async def socket_not_built(socket: WebSocket) -> None:
    """501, as an answer to the handshake."""
    raise NotBuilt("this WebSocket is documented, and not built yet")


NOT_BUILT = (not_built, socket_not_built)


def add_missing(api: FastAPI, endpoints: Iterable[tuple[str, str]]) -> None:
    """A 501 for each (method, path) that no route of the app serves; method `WS` is a WebSocket."""
    built = {
        (method, template(route.path))
        for route in api.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    built |= {("WS", template(route.path)) for route in api.routes if isinstance(route, WebSocketRoute)}
    for method, path in endpoints:
        if (method, template(path)) in built:
            continue
        name = f"{method.lower()}{template(path).replace('{}', 'one').replace('/', '_').replace('-', '_')}"
        if method == "WS":
            api.router.add_websocket_route(path, socket_not_built, name)
        else:
            api.add_api_route(path, not_built, methods=[method], name=name, status_code=501)
