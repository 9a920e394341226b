"""DukeNet AINS, routing routes: parse, call the core, render."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from cluster.routing.strategies import CATALOGUE, DEFAULT
from serve_apps.core import FromCore
from serve_apps.dialects.ains.routes_agents import counted
from serve_apps.kit.auth import SignedIn

router = APIRouter(prefix="/ains/routing")


class Trial(BaseModel):
    """A task that is not submitted."""

    capability_required: str = Field(min_length=1, max_length=200)
    routing_strategy: str = DEFAULT
    priority: int = Field(5, ge=1, le=10)


@router.post("/test")
async def try_out(body: Trial, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Who would get such a task now; nothing changes."""
    found = await core.routing.preview(body.capability_required, body.routing_strategy)
    counts = counted(found.standing)
    return {
        "selected_agent": {
            "agent_id": found.agent.agent_id, "display_name": found.agent.display_name,
            "trust_score": counts["trust_score"], "current_load": found.load,
            "avg_completion_time_seconds": counts["avg_completion_time_seconds"],
        },
        "strategy_used": body.routing_strategy, "selection_reason": found.reason,
        "alternatives_considered": found.considered - 1,
    }  # fmt: skip


@router.get("/strategies")
async def strategies(who: SignedIn) -> dict[str, Any]:
    """The strategies and what each is for."""
    return {
        "strategies": [
            {"name": name, "description": each.description, "use_cases": each.use_cases}
            for name, each in CATALOGUE.items()
        ],
        "default_strategy": DEFAULT,
    }
