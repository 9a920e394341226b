"""DukeNet AINS, agent routes: parse, call the core, render."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, field_validator

from cluster.clock import iso, utc_now
from cluster.trust.ledger import Standing
from cluster.workers.model import Agent
from serve_apps.core import FromCore
from serve_apps.kit.auth import SignedIn

router = APIRouter(prefix="/ains/agents")
TAG = r"^[A-Za-z0-9._-]{1,100}:[A-Za-z0-9._-]{1,50}$"


class Registration(BaseModel):
    """What an agent says of itself; `signature` covers the other five required fields as canonical JSON."""

    agent_id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")
    display_name: str = Field(min_length=1, max_length=200)
    public_key: str = Field(max_length=10_000)
    endpoint: str = Field(max_length=2000)
    signature: str = Field(max_length=4000)
    tags: list[Annotated[str, Field(pattern=TAG)]] = Field(min_length=1, max_length=100)
    metadata: dict[str, Any] = {}

    @field_validator("agent_id")
    @classmethod
    def not_a_path(cls, value: str) -> str:
        """`leaderboard` is a path of its own."""
        if value == "leaderboard":
            raise ValueError("this name is taken by a path of the API")
        return value


def counted(standing: Standing) -> dict[str, Any]:
    """What an agent's ledger counts; the mean time is null until there is one."""
    mean = standing.mean_seconds
    return {
        "trust_score": round(standing.score(utc_now()), 9),
        "total_tasks_completed": standing.completed, "total_tasks_failed": standing.failed,
        "success_rate": round(standing.success_rate, 6),
        "avg_completion_time_seconds": None if mean is None else round(mean, 6),
    }  # fmt: skip


def listed(agent: Agent, standing: Standing) -> dict[str, Any]:
    """An agent in a list."""
    return {
        "agent_id": agent.agent_id, "display_name": agent.display_name, **counted(standing), "tags": agent.tags,
        "status": agent.status, "last_seen_at": iso(agent.last_seen_at),
    }  # fmt: skip


@router.post("", status_code=201)
async def register(body: Registration, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Register an agent."""
    agent = await core.workers.register(
        who, agent_id=body.agent_id, display_name=body.display_name, public_key=body.public_key,
        endpoint=body.endpoint, tags=body.tags, signed=body.signature, metadata=body.metadata,
    )  # fmt: skip
    standing = await core.trust.standing(agent.agent_id)
    return {
        "agent_id": agent.agent_id, "display_name": agent.display_name,
        "trust_score": round(standing.score(utc_now()), 9), "tags": agent.tags, "status": agent.status,
        "created_at": iso(agent.created_at),
    }  # fmt: skip


@router.get("")
async def list_agents(
    who: SignedIn,
    core: FromCore,
    tag: str = "",
    trust_min: Annotated[float | None, Query(ge=0, le=1)] = None,
    status: Literal["active", "inactive"] | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> dict[str, Any]:
    """Agents, newest first."""
    page, standings = await core.workers.page(
        tag=tag, trust_min=trust_min, status=status or "", offset=offset, limit=limit
    )
    return {
        "agents": [listed(agent, standings[agent.agent_id]) for agent in page.items], "total": page.total,
        "limit": limit, "offset": offset, "has_more": offset + len(page.items) < page.total,
    }  # fmt: skip


@router.get("/leaderboard")
async def leaderboard(who: SignedIn, core: FromCore, limit: Annotated[int, Query(ge=1, le=100)] = 10) -> dict[str, Any]:
    """Agents with a record, by trust."""
    standings = await core.trust.best(limit)
    agents = {a.agent_id: a for a in await core.store.many(Agent, [s.standing_id for s in standings])}
    ranked = [s for s in standings if s.standing_id in agents]
    return {
        "leaderboard": [
            {"rank": rank, "agent_id": s.standing_id, "display_name": agents[s.standing_id].display_name, **counted(s)}
            for rank, s in enumerate(ranked, start=1)
        ],
        "generated_at": iso(utc_now()),
    }


@router.get("/{agent_id}")
async def get_agent(agent_id: str, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """An agent in full."""
    agent = await core.workers.get(agent_id)
    load, standing = await core.workers.load(agent_id), await core.trust.standing(agent_id)
    return listed(agent, standing) | {
        "endpoint": agent.endpoint, "current_load": load, "max_concurrent_tasks": agent.max_concurrent_tasks,
        "metadata": agent.metadata, "created_at": iso(agent.created_at),
    }  # fmt: skip
