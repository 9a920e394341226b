"""AIVillage, the system: what it is and how it fares."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter

from cluster.clock import iso
from serve_apps.core import Core, FromCore
from serve_apps.dialects.aivillage.envelope import VillageRoute
from serve_apps.kit.openapi import VERSION
from serve_apps.kit.readiness import Check, overall

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
    "events": "GET /v1/events",
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
    report = await core.readiness.report()
    active, total = core.metrics.sockets_now()
    socket = _service(True, True, active_connections=active, total_connections=total)
    return {
        "status": overall(report),
        "timestamp": iso(core.clock()),
        "services": reported(core, report) | {"websocket": socket},
        "version": VERSION,
    }


async def services(core: Core) -> dict[str, Any]:
    """The services of the document: running, away (no sign of life lately) or absent (not part of it)."""
    return reported(core, await core.readiness.report())


def reported(core: Core, report: Mapping[str, Check]) -> dict[str, Any]:
    """`services`, of a report that is at hand."""
    parts = {
        "agent_forge": (core.forge, "forge"), "chat": (core.chat, "chat"), "knowledge": (core.knowledge, "knowledge"),
        "tasks": (core.tasks, "router"), "trust": (core.trust, "ledger"), "audit": (core.audit, "audit"),
        "webhooks": (core.webhooks, "webhooks"),
    }  # fmt: skip
    told = {name: _part(bool(service), report.get(part)) for name, (service, part) in parts.items()}
    return told | {"p2p_fog": _service(False, False)}


def _part(built: bool, check: Check | None) -> dict[str, Any]:
    beaten = check.beat_age_seconds if check else None
    more = {} if beaten is None else {"last_beat_seconds": round(beaten, 1)}
    return _service(built, check is None or check.ready, **more)


def _service(built: bool, alive: bool, **more: Any) -> dict[str, Any]:
    status = "absent" if not built else "running" if alive else "away"
    return {"status": status, "available": built and alive} | more
