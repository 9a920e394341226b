"""What stands before every route: its scope, then the body, then the Idempotency-Key. In that order, so that nothing is
read for a caller who may not send it, and nothing is kept for a body that says nothing."""

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_apps.kit import body, idempotent
from serve_apps.kit.auth import allow
from serve_apps.kit.call import call_of

WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})


def guarded(app: ASGIApp, needed: str, streams: bool = False) -> ASGIApp:
    """The app of a route behind the scope that it needs. `streams`: it takes files and reads its body by itself."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        call = call_of(scope)
        allow(call, needed)
        if streams or scope.get("method") not in WITH_BODY:
            await app(scope, receive, send)
            return
        content = await body.read(scope, receive)
        body.check_json(scope, content)
        again = body.replay(content, receive)
        key = idempotent.key_of(scope)
        if key and call.principal is not None and scope["method"] == "POST":
            keys, who = call.core.idempotency, call.principal.principal_id
            await idempotent.once(keys, who, key, content, app, scope, again, send)
            return
        await app(scope, again, send)

    return guard
