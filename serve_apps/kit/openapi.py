"""One OpenAPI 3.1 document over all dialects: what FastAPI knows of the routes, and what every route has in common."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi.routing import APIRoute
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_apps.kit import failures, listing
from serve_apps.kit.call import call_of
from serve_apps.kit.documented import NOT_BUILT
from serve_apps.kit.parameters import HEADERS, IDEMPOTENCY_KEY, PARAMETERS
from serve_apps.kit.routing import template
from serve_apps.scopes import OPEN, SCOPES, SIGNED_IN

if TYPE_CHECKING:
    from serve_apps.kit.dialect import DialectApp

VERSION = "1.0.0"
SECURITY = {
    "bearer": {
        "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
        "description": "An access token of `POST /auth/token`, or an API key",
    },
    "apiKey": {
        "type": "apiKey", "in": "header", "name": "X-API-Key",
        "description": "An API key of `POST /ains/api-keys`",
    },
}  # fmt: skip
ABOUT = (
    "One platform, several dialects of one core: users, keys, limits and records are the same behind all, and each "
    "dialect has its own envelope, errors and limit headers. The names beside a security scheme are the scopes that "
    "the operation needs. An operation with `x-status: planned` is documented and answers 501."
)
PLANNED = "Documented, and not built yet."


class Documents:
    """`/openapi.json` and `/docs`, made when somebody first asks."""

    def __init__(self, apps: Sequence[DialectApp]) -> None:
        self._apps = apps
        self._made: tuple[bytes, bytes] | None = None
        self.pages: dict[str, ASGIApp] = {"/openapi.json": self._page(self._json), "/docs": self._page(self._html)}

    def _page(self, render: Callable[[bytes, bytes], Response]) -> ASGIApp:
        async def page(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["method"] in ("GET", "HEAD"):
                # In a thread: it takes half a second, for which no other request should wait.
                self._made = self._made or await asyncio.to_thread(self._make)
                response = render(*self._made)
            else:
                response = self._apps[0].dialect.not_allowed(call_of(scope))
            await response(scope, receive, send)

        return page

    def _make(self) -> tuple[bytes, bytes]:
        document = merged(self._apps)
        return json.dumps(document, ensure_ascii=False).encode(), listing.page(document).encode()

    @staticmethod
    def _json(document: bytes, _: bytes) -> Response:
        return Response(document, media_type="application/json")

    @staticmethod
    def _html(_: bytes, page: bytes) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": listing.POLICY})


def merged(apps: Sequence[DialectApp]) -> dict[str, Any]:
    """Paths and schemas of all dialects; a schema's name is prefixed with its dialect's tag."""
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {}
    responses: dict[str, Any] = {}
    headers: dict[str, Any] = dict(HEADERS)
    for app in apps:
        document = _renamed(app)
        schemas |= document["components"]["schemas"] | {f"{app.dialect.tag}.Error": failures.schema(app.dialect)}
        responses |= failures.responses(app.dialect)
        headers |= failures.limit_headers(app.dialect)
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                paths.setdefault(path, {})[method] = _finished(app, method.upper(), path, operation)
    merged_document = {
        "openapi": "3.1.0",
        "info": {"title": "AIVillage", "version": VERSION, "description": ABOUT, "license": {
            "name": "Apache 2.0", "identifier": "Apache-2.0"}},
        "servers": [{"url": "/"}],
        "tags": [{"name": app.dialect.tag, "description": app.dialect.name} for app in apps],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": schemas, "responses": responses, "headers": headers,
            "parameters": {"Idempotency-Key": IDEMPOTENCY_KEY}, "securitySchemes": SECURITY,
        },
        "x-websockets": [socket for app in apps for socket in _sockets(app)],
    }  # fmt: skip
    return _pruned(merged_document)


def _renamed(app: DialectApp) -> dict[str, Any]:
    tag = app.dialect.tag
    text = json.dumps(app.api.openapi()).replace("#/components/schemas/", f"#/components/schemas/{tag}.")
    document = json.loads(text, object_hook=_in_order)
    schemas = document.get("components", {}).get("schemas", {})
    document["components"] = {"schemas": {f"{tag}.{name}": schema for name, schema in schemas.items()}}
    return document


def _in_order(node: dict[str, Any]) -> dict[str, Any]:
    # A set's default would come in another order from each process.
    return node | {"default": sorted(node["default"])} if node.get("uniqueItems") and node.get("default") else node


def _pruned(document: dict[str, Any]) -> dict[str, Any]:
    """Without components that nothing refers to."""
    while True:
        named = set(re.findall(r'"#/components/(\w+/[^"]+)"', json.dumps(document)))
        idle = [
            (kind, name)
            for kind in ("schemas", "responses", "headers")
            for name in document["components"][kind]
            if f"{kind}/{name}" not in named
        ]
        if not idle:
            return document
        for kind, name in idle:
            del document["components"][kind][name]


def _finished(app: DialectApp, method: str, path: str, operation: dict[str, Any]) -> dict[str, Any]:
    dialect = app.dialect
    route = _route(app, method, path)
    planned = route.endpoint in NOT_BUILT
    needed = SCOPES[dialect.tag][f"{method} {path}"]
    scopes = [] if needed in (OPEN, SIGNED_IN) else [needed]
    operation["tags"] = [dialect.tag]
    operation["security"] = [] if needed == OPEN else [{name: scopes} for name in SECURITY]
    if planned:
        operation |= {"x-status": "planned", "responses": {}, "summary": f"{method} {path}", "description": PLANNED}
    told = _parameters(path, operation)
    if method == "POST":
        told.append({"$ref": "#/components/parameters/Idempotency-Key"})
    if told:
        operation["parameters"] = told
    _with_examples(method, path, operation, planned)
    own = operation["responses"]
    if "HTTPValidationError" in json.dumps(own.get("422", {})):
        del own["422"]  # FastAPI's own, which no dialect sends
    headers = {"X-Request-ID": {"$ref": "#/components/headers/X-Request-ID"}}
    if path not in dialect.uncounted:
        names = ("RateLimit", "RateLimit-Policy", *failures.limit_headers(dialect))
        headers |= {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    for status, response in own.items():
        if status.startswith("2"):
            media = response.get("content", {}).get("application/json")
            if media is not None and getattr(route, "wraps", False):
                media["schema"] = dialect.wrap_schema(media.get("schema", {}))
            response["headers"] = headers | response.get("headers", {})
    raised = failures.of(dialect, method, path, bool(operation.get("parameters")), needed, planned)
    raised |= {int(status) for status, response in own.items() if status[0] in "45" and "content" not in response}
    refused = {str(status): failures.reference(dialect, status) for status in raised}
    operation["responses"] = dict(sorted((refused | {s: r for s, r in own.items() if s not in refused}).items()))
    return operation


def _route(app: DialectApp, method: str, path: str) -> APIRoute:
    return next(
        route for route in app.api.routes
        if isinstance(route, APIRoute) and route.path_format == path and method in route.methods
    )  # fmt: skip


def _parameters(path: str, operation: dict[str, Any]) -> list[dict[str, Any]]:
    given = operation.pop("parameters", [])
    named = {parameter["name"] for parameter in given if parameter["in"] == "path"}
    given += [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)", path) if name not in named
    ]  # fmt: skip
    for parameter in given:
        if not parameter.get("description"):
            parameter["description"] = parameter["schema"].pop("description", "") or PARAMETERS[parameter["name"]]
    return given


def _with_examples(method: str, path: str, operation: dict[str, Any], planned: bool) -> None:
    """The documents' own examples. What is planned has no answer yet, so its example stands beside the answers."""
    for system, spec in examples(method, path):
        request, answer = spec["request"], spec["response"]
        if request is not None and planned:
            operation.setdefault("requestBody", {"content": {"application/json": {"schema": {"type": "object"}}}})
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if request is not None and body is not None:
            body.setdefault("examples", {})[system] = {"value": request}
        if planned and answer is not None:
            operation["x-planned-response"] = answer
        for status, response in operation["responses"].items():
            media = response.get("content", {}).get("application/json")
            if status.startswith("2") and media is not None and answer is not None:
                media.setdefault("examples", {})[system] = {"value": answer}


@cache
def _documented() -> dict[tuple[str, str], list[tuple[str, Any]]]:
    found: dict[tuple[str, str], list[tuple[str, Any]]] = {}
    for spec in json.loads((Path(__file__).parent / "examples.json").read_text()).values():
        found.setdefault((spec["method"], template(spec["path"])), []).append((spec["system"], spec))
    return found


def examples(method: str, path: str) -> list[tuple[str, dict[str, Any]]]:
    """(system, its entry in `examples.json`) of every document that names the endpoint."""
    return _documented().get((method, template(path)), [])


def _sockets(app: DialectApp) -> Iterator[dict[str, Any]]:
    """OpenAPI has no word for WebSockets."""
    for route in app.api.routes:
        assert isinstance(route, Route | WebSocketRoute)
        if isinstance(route, WebSocketRoute):
            planned = route.endpoint in NOT_BUILT
            yield {
                "path": route.path, "tag": app.dialect.tag, "scope": SCOPES[app.dialect.tag][f"WS {route.path}"],
                "description": PLANNED if planned else (route.endpoint.__doc__ or "").strip(),
                "x-status": "planned" if planned else "built",
                "examples": {system: spec["request"] for system, spec in examples("WS", route.path)},
            }  # fmt: skip
