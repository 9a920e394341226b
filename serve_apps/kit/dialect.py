"""A dialect is data; `app(core)` turns it into an ASGI app that speaks it in every answer, errors included."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message, Receive, Scope, Send

from cluster.errors import Invalid, NotFound, Unauthenticated, VillageError
from cluster.origin import within
from serve_apps.kit import documented, witness
from serve_apps.kit.admission import admit
from serve_apps.kit.call import Call, call_of
from serve_apps.kit.guard import guarded
from serve_apps.kit.routing import allowed_methods, order
from serve_apps.scopes import SCOPES

log = structlog.get_logger()

FieldError = Mapping[str, Any]  # one of pydantic's errors: type, loc, msg, ctx


@dataclass(frozen=True)
class Problem:
    """What went wrong, in the dialect's words; `error` is what the code raised."""

    code: str
    status: int
    message: str
    details: Mapping[str, Any]
    error: Exception | None = None


@dataclass(frozen=True)
class Dialect:
    """One face of the village.

    `owns`: paths that are its; one that ends in `/` is a prefix, any other is that path alone.
    `codes`: for each error class its code and status, looked up along the error's base classes.
    `limit_headers`: the headers that its document promises, from `call.limits`.
    `documented`: every endpoint that its document names, as (method, path); one without a route answers 501.
    `takes_files`: paths whose routes read their body by themselves, as it comes.
    `uncounted`: open paths that neither need a principal nor count against a limit.
    `of_field`: a code for a validation error, where the document has one; `codes[Invalid]` otherwise.
    `invalid_status`: status of a request that fails validation.
    `bucket`: which of the dialect's limits a request counts against.
    `stranger`: what a request without a principal counts under, where that is not its address.
    """

    name: str
    tag: str
    owns: tuple[str, ...]
    routers: tuple[APIRouter, ...]
    codes: Mapping[type[VillageError], tuple[str, int]]
    error_body: Callable[[Problem, Call], dict[str, Any]]
    limit_headers: Callable[[Call], Iterable[tuple[str, str]]]
    documented: tuple[tuple[str, str], ...] = ()
    takes_files: frozenset[str] = frozenset()
    uncounted: frozenset[str] = frozenset()
    of_field: Callable[[FieldError], str | None] = lambda _: None
    invalid_status: int | None = None
    bucket: Callable[[Scope], str] = lambda _: "requests"
    stranger: Callable[[Scope], str] = lambda _: ""
    wrap_schema: Callable[[dict[str, Any]], dict[str, Any]] = lambda schema: schema

    def app(self, core: Any) -> "DialectApp":
        """Its own FastAPI app, because exception handlers belong to an app, behind credentials and limits."""
        return DialectApp(self, core)

    def problem(self, error: Exception) -> Problem:
        """Any exception in this dialect's words. What was not raised on purpose tells nothing of itself."""
        if isinstance(error, VillageError):
            code, status = next(self.codes[kind] for kind in type(error).__mro__ if kind in self.codes)
            if type(error) is Invalid and "field" in error.details:
                code = self.of_field({"type": "value_error", "loc": ("body", error.details["field"])}) or code
            return Problem(code, status, error.message, error.details, error)
        if isinstance(error, RequestValidationError):
            return self._invalid(error.errors(), error)
        if isinstance(error, HTTPException):
            like = {401: Unauthenticated, 404: NotFound}.get(error.status_code, Invalid)
            return Problem(self.codes[like][0], error.status_code, str(error.detail), {}, error)
        code, status = self.codes[VillageError]
        return Problem(code, status, "an unexpected error; its request_id is in the log", {}, error)

    def _invalid(self, errors: Sequence[FieldError], error: Exception) -> Problem:
        code, status = self.codes[Invalid]
        first = errors[0]
        details: dict[str, Any] = {"field": field_of(first), "reason": first["msg"]}
        if "expected" in first.get("ctx", {}):
            details["allowed_values"] = first["ctx"]["expected"]
        if len(errors) > 1:
            details["errors"] = [{"field": field_of(e), "reason": e["msg"]} for e in errors[:20]]
        message = f"{details['field']}: {first['msg']}"
        return Problem(self.of_field(first) or code, self.invalid_status or status, message, details, error)

    def answer(self, error: Exception, call: Call) -> Response:
        """The error as an answer."""
        problem = self.problem(error)
        headers = dict(getattr(error, "headers", None) or {})
        wait = problem.details.get("retry_after_seconds")
        if wait is not None or problem.status in (429, 503):
            headers["Retry-After"] = str(max(1, round(wait or 1)))
        if problem.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.error_body(problem, call), problem.status, headers)

    def not_allowed(self, call: Call) -> Response:
        """405, for a path that only reads."""
        return self.answer(HTTPException(405, "Method Not Allowed", {"Allow": "GET, HEAD"}), call)


def field_of(error: FieldError) -> str:
    """`body.tasks.3.priority` without the first word: where the caller has to look."""
    place = [str(part) for part in error["loc"]]
    return ".".join(place[1:] if len(place) > 1 else place)


class DialectApp:
    """ASGI: who calls, may they call this often, then the dialect's FastAPI app; whatever fails, in its words."""

    def __init__(self, dialect: Dialect, core: Any) -> None:
        self.dialect, self.core = dialect, core
        self.api = self._build()
        self._literal = {(m, r.path): r for r in self.api.routes if isinstance(r, Route) for m in r.methods or ()}
        self.api.router.middleware_stack = self._route

    def _build(self) -> FastAPI:
        api = FastAPI(
            title=self.dialect.name,
            openapi_url=None,
            redirect_slashes=False,
            generate_unique_id_function=lambda route: f"{self.dialect.tag.lower()}_{route.name}",
        )
        for router in self.dialect.routers:
            api.include_router(router)
        documented.add_missing(api, self.dialect.documented)
        api.router.default = _nowhere
        scopes = SCOPES[self.dialect.tag]
        for route in api.router.routes:
            assert isinstance(route, (Route, WebSocketRoute))
            for method in getattr(route, "methods", None) or ("WS",):
                if method != "HEAD":
                    streams = route.path_format in self.dialect.takes_files
                    route.app = guarded(route.app, scopes[f"{method} {route.path_format}"], streams)
        api.router.routes.sort(key=order)  # a literal path before one with parameters, whoever declared it first
        for kind in (VillageError, RequestValidationError, HTTPException, Exception):
            api.add_exception_handler(kind, self._answer)
        return api

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A path without parameters is looked up; Starlette would try each route in turn, at 2 us of ours for each."""
        route = self._literal.get((scope.get("method", ""), scope["path"]))
        if route is None:
            await self.api.router.app(scope, receive, send)
            return
        scope["router"] = self.api.router
        scope.update(route.matches(scope)[1])
        await route.handle(scope, receive, send)

    async def _answer(self, connection: HTTPConnection, error: Exception) -> Response:
        witness.refusal(error, call_of(connection.scope), connection.scope)
        response = self.dialect.answer(error, call_of(connection.scope))
        if isinstance(error, HTTPException) and error.status_code == 405:
            response.headers["allow"] = ", ".join(allowed_methods(self.api.routes, connection.scope))
        return response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        call = call_of(scope)
        if scope["path"] not in self.dialect.uncounted:
            try:
                await admit(call, scope, self.dialect)
            except VillageError as error:
                await self.dialect.answer(error, call)(scope, receive, send)
                return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            with within(call.origin):
                await self.api(scope, receive, watched)
        except Exception as error:
            # Starlette has answered through `_answer` and raises again so that somebody logs it: here, once.
            log.exception("unexpected error", request_id=call.request_id, path=scope["path"])
            if not started:
                await self.dialect.answer(error, call)(scope, receive, send)


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    raise HTTPException(404)  # for WebSockets too, where Starlette would close with 403
