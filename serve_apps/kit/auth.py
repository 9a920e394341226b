"""Who calls: a Bearer token or an API key becomes one Principal, and a route says by type what it must be allowed.

@router.post("")
async def submit(body: Submission, who: TasksWriter, core: FromCore) -> Submitted: ...
"""

from collections.abc import Awaitable, Callable
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import Depends
from starlette.requests import HTTPConnection
from starlette.types import Scope

from cluster.errors import Forbidden, Unauthenticated
from cluster.identity.keys import PREFIX
from cluster.identity.model import Principal
from cluster.identity.service import Identity
from serve_apps.kit.call import Call, call_of


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


def _holder(scope: str) -> Callable[[HTTPConnection], Awaitable[Principal]]:
    async def principal(connection: HTTPConnection) -> Principal:
        who = signed_in(call_of(connection.scope))
        if scope and not who.may(scope):
            raise Forbidden(f"the scope {scope} is needed", required_scope=scope, scopes=sorted(who.scopes))
        return who

    return principal


SignedIn = Annotated[Principal, Depends(_holder(""))]
Admin = Annotated[Principal, Depends(_holder("admin"))]
TasksReader = Annotated[Principal, Depends(_holder("tasks:read"))]
TasksWriter = Annotated[Principal, Depends(_holder("tasks:write"))]
AgentsReader = Annotated[Principal, Depends(_holder("agents:read"))]
AgentsWriter = Annotated[Principal, Depends(_holder("agents:write"))]
AgentsAdmin = Annotated[Principal, Depends(_holder("agents:admin"))]
WebhooksManager = Annotated[Principal, Depends(_holder("webhooks:manage"))]
KeysManager = Annotated[Principal, Depends(_holder("keys:manage"))]
AuditReader = Annotated[Principal, Depends(_holder("audit:read"))]
ModelsReader = Annotated[Principal, Depends(_holder("models:read"))]
ModelsWriter = Annotated[Principal, Depends(_holder("models:write"))]
ChatWriter = Annotated[Principal, Depends(_holder("chat:write"))]
KnowledgeReader = Annotated[Principal, Depends(_holder("knowledge:read"))]
KnowledgeWriter = Annotated[Principal, Depends(_holder("knowledge:write"))]
FogReader = Annotated[Principal, Depends(_holder("fog:read"))]
FogWriter = Annotated[Principal, Depends(_holder("fog:write"))]
