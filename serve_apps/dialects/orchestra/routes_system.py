"""AI Orchestra, the system: `/health` (with AI Forge's fields too), `/readiness`, `/metrics`. All of them are open."""

from typing import Annotated, Any

import psutil
from fastapi import APIRouter, Query, Response
from prometheus_client import CONTENT_TYPE_LATEST

from cluster.clock import iso
from serve_apps.core import FromCore
from serve_apps.kit.metrics import PROCESS, exposition
from serve_apps.kit.openapi import VERSION

router = APIRouter()


@router.get("/health")
async def health(core: FromCore) -> dict[str, Any]:
    """How the village and this machine fare: the fields of Orchestra's and of Forge's document in one answer."""
    checks = await core.readiness.checks()
    memory = psutil.virtual_memory()
    return {
        "status": "healthy" if all(checks.values()) else "degraded",
        "version": VERSION,
        "uptime": round(core.metrics.uptime_seconds),
        "timestamp": iso(core.clock()),
        "components": {name: "healthy" if good else "degraded" for name, good in checks.items()},
        "checks": checks,
        "cpu": {"utilization": psutil.cpu_percent(), "cores": psutil.cpu_count()},
        "memory": {"total": memory.total, "used": memory.total - memory.available},
    }


@router.get("/readiness")
async def readiness(core: FromCore, response: Response) -> dict[str, Any]:
    """Whether requests will be served; 503 until then."""
    checks = await core.readiness.checks()
    ready = all(checks.values())
    response.status_code = 200 if ready else 503
    return {"ready": ready, "checks": checks}


@router.get("/metrics")
async def metrics(
    core: FromCore, own: Annotated[bool, Query(description="Only the replica that answers")] = False
) -> Response:
    """Prometheus' text format, summed over the gateway's replicas."""
    if own:
        text = core.metrics.text()
    else:
        doors = [path for role in ("gateway", "chat") for path in core.settings.run_dir.glob(f"{role}-*.sock")]
        text = await exposition(core.metrics, doors)
    return Response(text, media_type=CONTENT_TYPE_LATEST, headers={PROCESS: core.metrics.process})
