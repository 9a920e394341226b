"""AI Farm: training workers outside the cluster."""

from serve_apps.dialects.aifarm import routes_checkpoints, routes_clients, routes_metrics, routes_tasks, socket
from serve_apps.dialects.aifarm.errors import CODES, error_body, limit_headers
from serve_apps.kit.dialect import Dialect

DOCUMENTED = (
    ("GET", "/api/tasks"),
    ("POST", "/api/tasks"),
    ("GET", "/api/tasks/{task_id}"),
    ("PUT", "/api/tasks/{task_id}/status"),
    ("DELETE", "/api/tasks/{task_id}"),
    ("GET", "/api/clients"),
    ("GET", "/api/clients/{client_id}"),
    ("GET", "/api/metrics"),
    ("GET", "/api/metrics/tasks/{task_id}"),
    ("WS", "/farm/ws"),
)

AIFARM = Dialect(
    name="AI Farm",
    tag="AIFarm",
    owns=("/api/", "/farm/"),
    routers=(
        routes_tasks.router,
        routes_checkpoints.router,
        routes_clients.router,
        routes_metrics.router,
        socket.router,
    ),
    codes=CODES,
    error_body=error_body,
    limit_headers=limit_headers,
    documented=DOCUMENTED,
    takes_files=frozenset({routes_checkpoints.UPLOAD}),
)
