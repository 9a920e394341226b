"""AI Orchestra, the system: `/health` (with AI Forge's fields too), `/readiness`, `/metrics`. All of them are open."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from prometheus_client import CONTENT_TYPE_LATEST

from cluster.clock import iso
from serve_apps.core import FromCore
from serve_apps.kit import machine
from serve_apps.kit.census import components
from serve_apps.kit.exposition import PROCESS, exposition
from serve_apps.kit.openapi import VERSION
from serve_apps.kit.readiness import overall

router = APIRouter()


@router.get("/health")
async def health(core: FromCore) -> dict[str, Any]:
    """How the village and this machine fare: the fields of Orchestra's and of Forge's document in one answer."""
    report = await core.readiness.report()
    return {
        "status": overall(report),
        "version": VERSION,
        "uptime": round(core.metrics.uptime_seconds),
        "timestamp": iso(core.clock()),
        "components": {name: check.state for name, check in report.items()},
        "checks": {name: check.ready for name, check in report.items()},
        "details": {name: check.told() for name, check in report.items()},
        "cpu": machine.cpu(),
        "memory": machine.memory(),
    }


@router.get(
    "/readiness", responses={503: {"model": dict[str, Any], "description": "The same, while a part is not ready"}}
)
async def readiness(core: FromCore, response: Response) -> dict[str, Any]:
    """Whether requests will be served; 503 until then."""
    checks = await core.readiness.checks()
    ready = all(checks.values())
    response.status_code = 200 if ready else 503
    return {"ready": ready, "checks": checks}


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(
    core: FromCore, own: Annotated[bool, Query(description="Only the replica that answers")] = False
) -> Response:
    """Prometheus' text format: summed over the gateway's replicas, and the village as a whole."""
    if own:
        text = await asyncio.to_thread(core.metrics.text)
    else:
        run = core.settings.run_dir
        doors = [path for role in ("gateway", "chat") for path in run.glob(f"{role}-*.sock")]
        families, report = await asyncio.gather(core.census.families(), core.readiness.report())
        text = await exposition(core.metrics, doors, run / "metrics.json", [*families, *components(report)])
    return Response(text, media_type=CONTENT_TYPE_LATEST, headers={PROCESS: core.metrics.process})
