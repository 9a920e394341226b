"""What a request tells the audit log and the usage counters: refusals, denials, and what an API key was used for."""

from typing import Any

from starlette.types import Scope

from cluster.errors import Forbidden, Unauthenticated
from serve_apps.kit.call import Call


def refusal(error: Exception, call: Call, scope: Scope) -> None:
    """Note an error that kept somebody out, as it is answered; any other is nothing to the log."""
    audit, origin = call.core.audit, call.origin
    if not isinstance(error, Forbidden | Unauthenticated) or origin is None or not audit:
        return
    endpoint = getattr(scope.get("route"), "path", "unknown")
    if isinstance(error, Forbidden) and call.principal is not None:
        audit.denied(origin, call.principal.owner, endpoint, error.details.get("required_scope", ""))
    elif isinstance(error, Unauthenticated) and call.refusal is not None:
        audit.refused(origin, endpoint, call.refusal.message)


def key_used(call: Call, endpoint: str, status: int) -> None:
    """Count a request that came with an API key, and have the log know that the key is in use."""
    who = call.principal
    if who is None or not who.client_id or call.origin is None:
        return
    call.core.usage.note(who.principal_id, endpoint, status)
    if call.core.audit:
        call.core.audit.key_used(call.origin, who.owner, endpoint)


def template_of(app: Any, scope: Scope, endpoint: str) -> str:
    """The route's template, also for a request that was refused before a route was looked for."""
    if endpoint != "unknown" or not hasattr(app, "api"):
        return endpoint
    return next((route.path for route in app.api.routes if route.matches(scope)[0].value), endpoint)
