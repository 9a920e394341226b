"""AIVillage, the system: what it is and how it fares."""

from typing import Any

from fastapi import APIRouter

from cluster.clock import iso
from serve_apps.core import Core, FromCore
from serve_apps.dialects.aivillage.envelope import VillageRoute
from serve_apps.kit.openapi import VERSION

router = APIRouter(route_class=VillageRoute)
bare = APIRouter()

FEATURES = [
    "Agent Forge training pipeline",
    "Chat with trained models through vLLM",
    "Task routing by trust",
    "Knowledge with sources",
    "Real-time WebSocket updates",
    "JWT and API key authentication",
]
ENDPOINTS = {
    "health": "GET /healthz",
    "training": "POST /v1/models/train",
    "models": "GET /v1/models",
    "chat": "POST /v1/chat",
    "query": "POST /v1/query",
    "knowledge": "POST /v1/knowledge",
    "tasks": "POST /ains/tasks",
    "agents": "GET /ains/agents",
    "docs": "GET /docs",
    "openapi": "GET /openapi.json",
    "websocket": "ws://host/ws",
}


@router.get("/")
async def information(core: FromCore) -> dict[str, Any]:
    """What this is, and where to go on."""
    ready = all((await core.readiness.checks()).values())
    return {
        "service": "AIVillage Unified API Gateway",
        "version": VERSION,
        "status": "operational" if ready else "starting",
        "features": FEATURES,
        "endpoints": ENDPOINTS,
    }


@bare.get("/healthz")
async def healthz(core: FromCore) -> dict[str, Any]:
    """That this process answers, and which services gave a sign of life lately."""
    active, total = core.metrics.sockets_now()
    socket = _service(True, True, active_connections=active, total_connections=total)
    return {
        "status": "healthy" if all((await core.readiness.checks()).values()) else "degraded",
        "timestamp": iso(core.clock()),
        "services": await services(core) | {"websocket": socket},
        "version": VERSION,
    }


async def services(core: Core) -> dict[str, Any]:
    """The services of the document: running, away (no sign of life lately) or absent (not part of it)."""
    alive = await core.readiness.checks()
    return {
        "agent_forge": _service(bool(core.forge), alive.get("forge", True)),
        "chat": _service(bool(core.chat), alive.get("chat", True)),
        "knowledge": _service(bool(core.knowledge), alive.get("knowledge", True)),
        "p2p_fog": _service(False, False),
    }


def _service(built: bool, alive: bool, **more: Any) -> dict[str, Any]:
    status = "absent" if not built else "running" if alive else "away"
    return {"status": status, "available": built and alive} | more
