"""AI Orchestra: chat with modes and swarms, health, metrics."""

from serve_apps.dialects.orchestra import routes_system
from serve_apps.dialects.orchestra.envelope import wrap_schema
from serve_apps.dialects.orchestra.errors import CODES, error_body, limit_headers
from serve_apps.kit.dialect import Dialect

DOCUMENTED = (
    ("POST", "/chat/v2/chat"),
    ("WS", "/chat/ws/{client_id}/{session_id}"),
    ("GET", "/health"),
    ("GET", "/readiness"),
    ("GET", "/metrics"),
)

ORCHESTRA = Dialect(
    name="AI Orchestra",
    tag="Orchestra",
    owns=("/chat/", "/health", "/readiness", "/metrics"),
    routers=(routes_system.router,),
    codes=CODES,
    error_body=error_body,
    limit_headers=limit_headers,
    documented=DOCUMENTED,
    uncounted=frozenset({"/health", "/readiness", "/metrics"}),
    wrap_schema=wrap_schema,
)
