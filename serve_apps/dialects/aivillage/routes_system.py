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
    """Whether this process answers, and which services it has."""
    active, total = core.metrics.sockets_now()
    return {
        "status": "healthy",
        "timestamp": iso(core.clock()),
        "services": services(core) | {"websocket": _service(True, active_connections=active, total_connections=total)},
        "version": VERSION,
    }


def services(core: Core) -> dict[str, Any]:
    """The services of the document; one that this replica does not have is not available."""
    return {
        "agent_forge": _service(bool(core.forge)),
        "chat": _service(bool(core.chat)),
        "knowledge": _service(bool(core.knowledge)),
        "p2p_fog": _service(False),
    }


def _service(available: bool, **more: Any) -> dict[str, Any]:
    return {"status": "running" if available else "absent", "available": available} | more
