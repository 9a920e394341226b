"""Who calls: a Bearer token or an API key becomes one Principal; `serve_apps.scopes` says what it must be allowed.

@router.post("")
async def submit(body: Submission, who: SignedIn, core: FromCore) -> Submitted: ...
"""

from typing import Annotated
from urllib.parse import parse_qs

from fastapi import Depends, Response
from starlette.requests import HTTPConnection
from starlette.types import Scope

from cluster.errors import Forbidden, Unauthenticated
from cluster.identity.model import Principal
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


async def _principal(connection: HTTPConnection) -> Principal:
    return signed_in(call_of(connection.scope))


SignedIn = Annotated[Principal, Depends(_principal)]


async def _no_store(response: Response) -> None:
    response.headers["cache-control"] = "no-store"


SECRET = [Depends(_no_store)]  # dependencies of a route whose answer holds a secret: nobody on the way may keep it
