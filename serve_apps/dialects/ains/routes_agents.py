"""DukeNet AINS, agent routes: parse, call the core, render."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, field_validator

from cluster.clock import iso, utc_now
from cluster.errors import Forbidden
from cluster.trust.ledger import Standing
from cluster.workers import machine
from cluster.workers.finding import Found, Wanted
from cluster.workers.model import Agent, Health
from serve_apps.core import FromCore
from serve_apps.dialects.ains.fields import stamp
from serve_apps.kit.auth import SignedIn
from serve_apps.kit.pagination import Limit50, Offset, more

router = APIRouter(prefix="/ains/agents")
TAG = r"^[A-Za-z0-9._-]{1,100}:[A-Za-z0-9._-]{1,50}$"
Tags = list[Annotated[str, Field(pattern=TAG)]]
Text = Annotated[str, Query(max_length=200)]


class Registration(BaseModel):
    """What an agent says of itself; `signature` covers the other five required fields as canonical JSON.

    `endpoint` is where tasks are sent, or `pull:` for an agent that takes them at `GET .../tasks/next`. Of `metadata`,
    `max_concurrent_tasks` says how many tasks it holds at most, and `ttl_seconds` after which silence it is taken for
    gone; without it that begins with its first heartbeat.
    """

    agent_id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")
    display_name: str = Field(min_length=1, max_length=200)
    public_key: str = Field(max_length=10_000)
    endpoint: str = Field(max_length=2000)
    signature: str = Field(max_length=4000)
    tags: Tags = Field(min_length=1, max_length=100)
    metadata: dict[str, Any] = {}

    @field_validator("agent_id")
    @classmethod
    def not_a_path(cls, value: str) -> str:
        """`leaderboard` is a path of its own."""
        if value == "leaderboard":
            raise ValueError("this name is taken by a path of the API")
        return value


class AgentChange(BaseModel):
    """What is given changes; `metadata` key by key, where null takes one away.

    Another `endpoint` or `public_key` needs a `signature` by the registered key, over the five fields as they will be.
    A new key has to sign the same (`new_key_signature`); an admin may replace a lost key without the old signature.
    """

    display_name: str | None = Field(None, min_length=1, max_length=200)
    public_key: str | None = Field(None, max_length=10_000)
    endpoint: str | None = Field(None, max_length=2000)
    tags: Tags | None = Field(None, min_length=1, max_length=100)
    metadata: dict[str, Any] | None = None
    signature: str = Field("", max_length=4000)
    new_key_signature: str = Field("", max_length=4000)


class AgentHeartbeat(BaseModel):
    """A sign of life. OFFLINE is a goodbye: no task comes until the next one. What is not given stays as it was."""

    status: Health = "ACTIVE"
    metrics: dict[str, Any] | None = None
    resources: dict[str, Any] | None = None


def counted(standing: Standing) -> dict[str, Any]:
    """What an agent's ledger counts; the mean time is null until there is one."""
    mean = standing.mean_seconds
    return {
        "trust_score": round(standing.score(utc_now()), 9),
        "total_tasks_completed": standing.completed, "total_tasks_failed": standing.failed,
        "success_rate": round(standing.success_rate, 6),
        "avg_completion_time_seconds": None if mean is None else round(mean, 6),
    }  # fmt: skip


def listed(found: Found) -> dict[str, Any]:
    """An agent in a list."""
    agent = found.agent
    return {
        "agent_id": agent.agent_id, "display_name": agent.display_name, **counted(found.standing), "tags": agent.tags,
        "status": agent.status, "current_load": found.load, "max_concurrent_tasks": agent.max_concurrent_tasks,
        "delivery": "pull" if agent.pulls else "push", "last_seen_at": iso(agent.last_seen_at),
    }  # fmt: skip


def in_full(found: Found) -> dict[str, Any]:
    """An agent with all that it says of itself."""
    agent = found.agent
    beat = {
        "at": stamp(agent.heartbeat_at), "status": agent.health, "metrics": agent.metrics,
        "resources": agent.resources,
    }  # fmt: skip
    return listed(found) | {
        "endpoint": agent.endpoint, "metadata": agent.metadata, "created_at": iso(agent.created_at),
        "expires_at": stamp(agent.expires_at) if agent.expires else None, "reason": agent.reason or None,
        "heartbeat": beat if agent.heartbeat_at else None,
    }  # fmt: skip


@router.post("", status_code=201)
async def register(body: Registration, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Register an agent, or bring an inactive one back by its own key."""
    agent = await core.workers.register(
        who, agent_id=body.agent_id, display_name=body.display_name, public_key=body.public_key,
        endpoint=body.endpoint, tags=body.tags, signed=body.signature, metadata=body.metadata,
    )  # fmt: skip
    standing = await core.trust.standing(agent.agent_id)
    return {
        "agent_id": agent.agent_id, "display_name": agent.display_name,
        "trust_score": round(standing.score(utc_now()), 9), "tags": agent.tags, "status": agent.status,
        "delivery": "pull" if agent.pulls else "push", "created_at": iso(agent.created_at),
    }  # fmt: skip


@router.get("")
async def list_agents(
    who: SignedIn,
    core: FromCore,
    tag: str = "",
    trust_min: Annotated[float | None, Query(ge=0, le=1)] = None,
    status: Literal["active", "inactive"] | None = None,
    q: Annotated[Text, Query(description="Only those with this in their name or id")] = "",
    mine: Annotated[bool, Query(description="Only the caller's own")] = False,
    owner: Annotated[Text, Query(description="Only this user's, or `client_NAME`'s")] = "",
    sort: Annotated[Literal["created_at", "trust", "load"], Query(description="By what")] = "created_at",
    order: Annotated[Literal["asc", "desc"] | None, Query(description="Default: `asc` by load, else `desc`")] = None,
    limit: Limit50 = 50,
    offset: Offset = 0,
) -> dict[str, Any]:
    """Agents, newest first unless sorted otherwise. Whose they are is told to their owner and to admins."""
    if owner and not who.sees(owner):
        raise Forbidden("only an admin may ask for another's agents", owner=owner)
    wanted = Wanted(
        tag=tag, trust_min=trust_min, status=status or "", name=q, owner=who.owner if mine else owner, sort=sort,
        descending=order == "desc" if order else sort != "load",
    )  # fmt: skip
    found, total = await core.workers.page(wanted, offset, limit)
    return {
        "agents": [listed(each) for each in found], "total": total, "limit": limit, "offset": offset,
        "has_more": more(offset, len(found), total),
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
    return in_full(await core.workers.found(agent_id))


@router.patch("/{agent_id}")
async def update_agent(agent_id: str, body: AgentChange, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Change an agent. Its owner's or an admin's."""
    await core.workers.update(
        who, agent_id, display_name=body.display_name, public_key=body.public_key, endpoint=body.endpoint,
        tags=body.tags, metadata=body.metadata, signed=body.signature, signed_by_new=body.new_key_signature,
    )  # fmt: skip
    return in_full(await core.workers.found(agent_id))


@router.delete("/{agent_id}")
async def deactivate_agent(
    agent_id: str, who: SignedIn, core: FromCore,
    reason: Annotated[str, Query(max_length=500, description="Why, for those who follow its events")] = "",
    release: Annotated[bool, Query(description="Give back what it is working on, too")] = False,
) -> dict[str, Any]:  # fmt: skip
    """Take an agent out: no task comes to it. What it has begun it may finish, unless `release` is asked for."""
    agent, back = await core.workers.deactivate(who, agent_id, reason, release)
    return {
        "agent_id": agent.agent_id, "status": agent.status, "reason": agent.reason, "tasks_released": back,
        "tasks_left": await core.workers.load(agent_id), "deactivated_at": iso(core.clock()),
    }  # fmt: skip


@router.post("/{agent_id}/heartbeat")
async def agent_heartbeat(
    agent_id: str, who: SignedIn, core: FromCore, body: AgentHeartbeat | None = None
) -> dict[str, Any]:  # fmt: skip
    """Say that an agent is there. After the first one, silence for its time to live takes it out until the next."""
    given = body or AgentHeartbeat()
    agent = await core.workers.heartbeat(who, agent_id, given.status, given.metrics, given.resources)
    return {
        "agent_id": agent.agent_id, "status": agent.status,
        "next_heartbeat_in": round(machine.next_heartbeat_in(agent), 3),
        "expires_at": stamp(agent.expires_at) if agent.expires else None,
    }  # fmt: skip
