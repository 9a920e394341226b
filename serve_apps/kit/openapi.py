"""One OpenAPI 3.1 document over all dialects, and a page that lists it."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi.routing import APIRoute
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_apps.kit.call import call_of
from serve_apps.scopes import OPEN, SCOPES, SIGNED_IN

if TYPE_CHECKING:
    from serve_apps.kit.dialect import Dialect, DialectApp

VERSION = "1.0.0"
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


class Documents:
    """`/openapi.json` and `/docs`, made when somebody first asks."""

    def __init__(self, apps: Sequence[DialectApp]) -> None:
        self._apps = apps
        self._document: dict[str, Any] = {}
        self.pages: dict[str, ASGIApp] = {"/openapi.json": self._page(self._json), "/docs": self._page(self._html)}

    def document(self) -> dict[str, Any]:
        """The merged document."""
        self._document = self._document or merged(self._apps)
        return self._document

    def _page(self, render: Any) -> ASGIApp:
        async def page(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["method"] in ("GET", "HEAD"):
                response: Response = render()
            else:
                response = self._apps[0].dialect.not_allowed(call_of(scope))
            await response(scope, receive, send)

        return page

    def _json(self) -> Response:
        return JSONResponse(self.document())

    def _html(self) -> Response:
        return HTMLResponse(listing(self.document()))


def merged(apps: Sequence[DialectApp]) -> dict[str, Any]:
    """Paths and schemas of all dialects; a schema's name is prefixed with its dialect's tag."""
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {}
    for app in apps:
        document = _renamed(app)
        schemas |= document.get("components", {}).get("schemas", {})
        for path, operations in document["paths"].items():
            paths.setdefault(path, {}).update(_finished(app, path, operations))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "AIVillage",
            "version": VERSION,
            "description": "One platform, several dialects of one core.",
        },
        "tags": [{"name": app.dialect.tag, "description": app.dialect.name} for app in apps],
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": schemas, "securitySchemes": SECURITY},
    }


def _renamed(app: DialectApp) -> dict[str, Any]:
    tag = app.dialect.tag
    text = json.dumps(app.api.openapi()).replace("#/components/schemas/", f"#/components/schemas/{tag}.")
    document = json.loads(text)
    schemas = document.get("components", {}).get("schemas", {})
    document.setdefault("components", {})["schemas"] = {f"{tag}.{name}": schema for name, schema in schemas.items()}
    return document


def _finished(app: DialectApp, path: str, operations: dict[str, Any]) -> dict[str, Any]:
    dialect = app.dialect
    wrapped = {
        (method.lower(), route.path_format)
        for route in app.api.routes
        if isinstance(route, APIRoute) and getattr(route, "wraps", False)
        for method in route.methods
    }
    for method, operation in operations.items():
        operation["tags"] = [dialect.tag]
        needed = SCOPES[dialect.tag][f"{method.upper()} {path}"]
        operation["security"] = [] if needed == OPEN else [{"bearer": []}, {"apiKey": []}]
        if needed not in (OPEN, SIGNED_IN):
            operation["x-required-scope"] = needed
        operation["responses"].pop("422", None)  # FastAPI's own, which no dialect sends
        operation["responses"]["default"] = {"description": f"An error, in {dialect.name}'s format"}
        if (method, path) in wrapped:
            _wrap(dialect, operation["responses"])
    return operations


def _wrap(dialect: Dialect, responses: dict[str, Any]) -> None:
    for status, response in responses.items():
        media = response.get("content", {}).get("application/json")
        if media is not None and status.startswith("2"):
            media["schema"] = dialect.wrap_schema(media.get("schema", {}))


def listing(document: dict[str, Any]) -> str:
    """The document as a page that loads nothing from anywhere else."""
    sections = []
    for tag in document["tags"]:
        rows = [
            f"<tr><td><code>{method.upper()}</code></td><td><code>{html.escape(path)}</code></td>"
            f"<td>{html.escape(operation.get('description') or operation.get('summary', ''))}</td></tr>"
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
            if tag["name"] in operation["tags"]
        ]
        if rows:
            sections.append(f"<h2>{html.escape(tag['description'])}</h2><table>{''.join(rows)}</table>")
    style = (
        "body{font:16px/1.5 system-ui;max-width:70rem;margin:2rem auto;padding:0 1rem}td{padding:.15rem .8rem .15rem 0}"
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>AIVillage API</title><style>{style}</style>"
        "<h1>AIVillage API</h1><p>The machine-readable form is <a href=openapi.json>openapi.json</a>.</p>"
        f"{''.join(sections)}"
    )
