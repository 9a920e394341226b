"""DukeNet AINS: agent registry, task routing, trust, workflows, webhooks."""

from serve_apps.dialects.ains import (
    routes_agents,
    routes_keys,
    routes_routing,
    routes_tasks,
    routes_trust,
    routes_version,
)
from serve_apps.dialects.ains.errors import CODES, error_body, limit_headers, of_field
from serve_apps.kit.dialect import Dialect

DOCUMENTED = (
    ("POST", "/ains/api-keys"),
    ("GET", "/ains/api-keys"),
    ("DELETE", "/ains/api-keys/{key_id}"),
    ("GET", "/ains/api-keys/{key_id}/usage"),
    ("POST", "/ains/agents"),
    ("GET", "/ains/agents"),
    ("GET", "/ains/agents/{agent_id}"),
    ("GET", "/ains/agents/leaderboard"),
    ("POST", "/ains/tasks"),
    ("GET", "/ains/tasks"),
    ("POST", "/ains/tasks/batch"),
    ("POST", "/ains/tasks/from-template"),
    ("GET", "/ains/tasks/{task_id}"),
    ("POST", "/ains/tasks/{task_id}/cancel"),
    ("PATCH", "/ains/tasks/{task_id}/priority"),
    ("GET", "/ains/tasks/{task_id}/dependencies"),
    ("POST", "/ains/task-chains"),
    ("GET", "/ains/task-chains/{chain_id}"),
    ("POST", "/ains/scheduled-tasks"),
    ("POST", "/ains/task-templates"),
    ("GET", "/ains/agents/{agent_id}/trust"),
    ("GET", "/ains/agents/{agent_id}/trust/history"),
    ("POST", "/ains/agents/{agent_id}/trust/adjust"),
    ("POST", "/ains/webhooks"),
    ("GET", "/ains/webhooks"),
    ("PATCH", "/ains/webhooks/{webhook_id}"),
    ("DELETE", "/ains/webhooks/{webhook_id}"),
    ("GET", "/ains/webhooks/{webhook_id}/deliveries"),
    ("GET", "/ains/audit-logs"),
    ("POST", "/ains/routing/test"),
    ("GET", "/ains/routing/strategies"),
    ("GET", "/ains/version"),
)

AINS = Dialect(
    name="DukeNet AINS",
    tag="AINS",
    owns=("/ains/",),
    routers=(
        routes_tasks.router,
        routes_agents.router,
        routes_trust.router,
        routes_routing.router,
        routes_keys.router,
        routes_version.router,
    ),
    codes=CODES,
    error_body=error_body,
    limit_headers=limit_headers,
    documented=DOCUMENTED,
    of_field=of_field,
)
