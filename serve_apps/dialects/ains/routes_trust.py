"""DukeNet AINS, trust routes: parse, call the core, render."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from cluster.clock import iso, utc_now
from cluster.trust import score
from cluster.trust.explain import Weighed
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


def weighed(line: Weighed) -> dict[str, Any]:
    """A line of the ledger as a part of the sum."""
    record = line.record
    return {
        "record_id": record.trust_record_id, "number": record.number, "event_type": record.event_type,
        "task_id": record.task_id or None, "reason": record.reason, "created_at": iso(record.created_at),
        "good": line.good, "bad": line.bad, "moves_score_by": line.moves,
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


@router.get("/explain")
async def explain(
    agent_id: str,
    who: SignedIn,
    core: FromCore,
    as_of: datetime | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> dict[str, Any]:
    """The score as a sum: the prior, what each record still weighs at `as_of`, and the proof of the records."""
    await core.workers.get(agent_id)
    found = await core.trust.explain(agent_id, aware(as_of))
    listed, rest = found.lines[:limit], found.lines[limit:]
    return {
        "agent_id": agent_id, "as_of": iso(found.as_of), "trust_score": found.stated, "sum_score": found.score,
        "sum_agrees": found.agrees, "half_life_days": score.HALF_LIFE_DAYS,
        "prior": {"good": score.PRIOR, "bad": score.PRIOR},
        "evidence": {"good": found.good, "bad": found.bad},
        "formula": "(prior.good + evidence.good) / (prior.good + prior.bad + evidence.good + evidence.bad)",
        "counts": found.counts, "total_records": len(found.lines),
        "strongest": [weighed(line) for line in found.strongest(5)],
        "records": [weighed(line) for line in listed],
        "other_records": {
            "count": len(rest), "good": sum(line.good for line in rest), "bad": sum(line.bad for line in rest)
        },
        "chain": {
            "verified": found.verdict.fault is None, "records_checked": found.verdict.checked,
            "fault": found.verdict.fault, "record_id": found.verdict.record_id or None, "head": found.verdict.head,
        },
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
