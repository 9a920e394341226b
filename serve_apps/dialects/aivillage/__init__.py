"""AIVillage: users and tokens, the forge, chat, agents, P2P, fog jobs, knowledge, files, the WebSocket."""

from serve_apps.dialects.aivillage import (
    routes_auth,
    routes_chat,
    routes_events,
    routes_knowledge,
    routes_models,
    routes_system,
    routes_users,
    routes_ws,
)
from serve_apps.dialects.aivillage.envelope import wrap_schema
from serve_apps.dialects.aivillage.errors import CODES, error_body, limit_headers
from serve_apps.kit.dialect import Dialect

DOCUMENTED = (
    ("POST", "/auth/token"),
    ("POST", "/auth/refresh"),
    ("GET", "/healthz"),
    ("GET", "/"),
    ("POST", "/v1/models/train"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/train/{task_id}/status"),
    ("GET", "/v1/models/train/{task_id}/logs"),
    ("GET", "/v1/models/{model_id}/download"),
    ("POST", "/v1/chat"),
    ("GET", "/v1/agents"),
    ("POST", "/v1/agents/{agent_id}/message"),
    ("POST", "/v1/agents/conversation"),
    ("GET", "/v1/p2p/status"),
    ("POST", "/v1/p2p/discover"),
    ("POST", "/v1/p2p/message"),
    ("GET", "/v1/fog/nodes"),
    ("POST", "/v1/fog/jobs"),
    ("GET", "/v1/fog/jobs/{job_id}/status"),
    ("GET", "/v1/fog/jobs/{job_id}/logs"),
    ("POST", "/v1/query"),
    ("POST", "/v1/knowledge"),
    ("POST", "/v1/upload"),
    ("GET", "/v1/files"),
    ("GET", "/v1/files/{file_id}/download"),
    ("GET", "/v1/tokens"),
    ("WS", "/ws"),
)

AIVILLAGE = Dialect(
    name="AIVillage",
    tag="AIVillage",
    owns=("/", "/healthz", "/auth/", "/v1/", "/ws"),
    routers=(
        routes_auth.router,
        routes_users.router,
        routes_chat.router,
        routes_knowledge.router,
        routes_system.router,
        routes_system.bare,
        routes_models.router,
        routes_events.router,
        routes_ws.router,
    ),
    codes=CODES,
    error_body=error_body,
    limit_headers=limit_headers,
    documented=DOCUMENTED,
    takes_files=frozenset({"/v1/upload"}),
    uncounted=frozenset({"/", "/healthz"}),
    wrap_schema=wrap_schema,
)
