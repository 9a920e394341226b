"""DukeNet AINS, trust routes: parse, call the core, render."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from cluster.clock import iso, utc_now
from cluster.trust import score
from cluster.trust.ledger import TrustRecord
from serve_apps.core import FromCore
from serve_apps.dialects.ains.routes_agents import counted
from serve_apps.kit.auth import SignedIn

router = APIRouter(prefix="/ains/agents/{agent_id}/trust")


class Adjustment(BaseModel):
    """A human's correction."""

    delta: float = Field(ge=-1, le=1, allow_inf_nan=False)
    reason: str = Field(min_length=1, max_length=2000)


def aware(at: datetime | None) -> datetime | None:
    """A date without a zone means UTC."""
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at


def shown(record: TrustRecord) -> dict[str, Any]:
    """A line of the ledger with its link."""
    return {
        "record_id": record.trust_record_id, "event_type": record.event_type, "task_id": record.task_id or None,
        "trust_delta": record.after - record.before, "trust_score_before": record.before,
        "trust_score_after": record.after, "reason": record.reason, "created_at": iso(record.created_at),
        "hash": record.hash, "previous_hash": record.previous,
    }  # fmt: skip


@router.get("")
async def metrics(agent_id: str, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Where the agent stands."""
    await core.workers.get(agent_id)
    standing = await core.trust.standing(agent_id)
    counts = counted(standing)
    return {
        "agent_id": agent_id, "trust_level": score.level(counts["trust_score"]), **counts,
        "reliability_rating": round(score.reliability_rating(standing.good_ever, standing.bad_ever), 3),
        "last_task_completed_at": iso(standing.last_completed_at) if standing.last_completed_at else None,
        "trust_trend": await core.trust.trend(agent_id),
    }  # fmt: skip


@router.get("/history")
async def history(
    agent_id: str,
    who: SignedIn,
    core: FromCore,
    start_date: datetime | None = None,
    end_date: datetime | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> dict[str, Any]:
    """The agent's ledger, newest first."""
    agent = await core.workers.get(agent_id)
    since, until = aware(start_date), aware(end_date)
    page = await core.trust.history(agent_id, since=since, until=until, offset=offset, limit=limit)
    return {
        "agent_id": agent_id, "records": [shown(record) for record in page.items], "total_records": page.total,
        "date_range": {"start": iso(since or agent.created_at), "end": iso(until or utc_now())},
    }  # fmt: skip


@router.post("/adjust")
async def adjust(agent_id: str, body: Adjustment, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Shift the score by exactly `delta`."""
    await core.workers.get(agent_id)
    record = await core.trust.adjust(who, agent_id, body.delta, body.reason)
    return {
        "agent_id": agent_id, "trust_score_before": record.before, "trust_score_after": record.after,
        "delta": body.delta, "reason": record.reason, "adjusted_by": record.by, "adjusted_at": iso(record.created_at),
    }  # fmt: skip
