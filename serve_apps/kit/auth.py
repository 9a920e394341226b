"""Who calls: a Bearer token or an API key becomes one Principal; `serve_apps.scopes` says what it must be allowed.

@router.post("")
async def submit(body: Submission, who: SignedIn, core: FromCore) -> Submitted: ...
"""

from typing import Annotated
from urllib.parse import parse_qs

from fastapi import Depends
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.errors import Forbidden, Unauthenticated
from cluster.identity.keys import PREFIX
from cluster.identity.model import Principal
from cluster.identity.service import Identity
from serve_apps.kit.call import Call, call_of
from serve_apps.scopes import OPEN, SIGNED_IN


def credential(scope: Scope) -> str:
    """What the caller presents: an API key or a token, from a header, or from `?token=` of a WebSocket."""
    authorization = ""
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            return value.decode("latin-1").strip()
        if name == b"authorization":
            authorization = value.decode("latin-1")
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    if scope["type"] == "websocket":  # a browser cannot set headers there
        return parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
    return ""


async def authenticate(call: Call, scope: Scope, identity: Identity) -> None:
    """Fill in the call's principal, or why there is none. An open route may be called with a stale token."""
    presented = credential(scope)
    try:
        if presented.startswith(PREFIX):
            call.principal = await identity.authenticate_key(presented)
        elif presented:
            call.principal = await identity.authenticate_bearer(presented)
    except Unauthenticated as refusal:
        call.refusal = refusal


def signed_in(call: Call) -> Principal:
    """The principal. Raises `Unauthenticated`."""
    if call.principal is None:
        raise call.refusal or Unauthenticated("a Bearer token or an X-API-Key is needed")
    return call.principal


def allow(call: Call, needed: str) -> None:
    """Return if the call may go on to a route that needs this scope. Raises `Unauthenticated`, `Forbidden`."""
    if needed == OPEN:
        return
    who = signed_in(call)
    if needed != SIGNED_IN and not who.may(needed):
        raise Forbidden(f"the scope {needed} is needed", required_scope=needed, scopes=sorted(who.scopes))


def guarded(app: ASGIApp, needed: str) -> ASGIApp:
    """The app of a route, behind its scope: nothing of a body is read for a caller who may not send it."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        allow(call_of(scope), needed)
        await app(scope, receive, send)

    return guard


async def _principal(connection: HTTPConnection) -> Principal:
    return signed_in(call_of(connection.scope))


SignedIn = Annotated[Principal, Depends(_principal)]
