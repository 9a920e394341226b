"""AINS, usage of an API key: parse, call the counters, render."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel

from cluster.clock import iso
from serve_apps.core import FromCore
from serve_apps.kit.auth import SignedIn

router = APIRouter(prefix="/ains/api-keys")


class DateRange(BaseModel):
    """From the midnight (UTC) that the period reaches back to, until now."""

    start: str
    end: str


class UsageAnswer(BaseModel):
    """`failed_requests` count those over a limit too; the average is over the hours of the period."""

    key_id: str
    period: str
    total_requests: int
    successful_requests: int
    failed_requests: int
    rate_limit_hits: int
    avg_requests_per_hour: float
    peak_requests_per_hour: int
    requests_by_endpoint: dict[str, int]
    date_range: DateRange


@router.get("/{key_id}/usage")
async def api_key_usage(
    key_id: str, who: SignedIn, core: FromCore, period: Annotated[Literal["1d", "7d", "30d", "90d"], Query()] = "7d"
) -> UsageAnswer:
    """What the key was used for."""
    key = await core.identity.get_key(who, key_id)
    report = await core.usage.of(key.key_id, period)
    return UsageAnswer(
        key_id=key.key_id, period=period, total_requests=report.total, successful_requests=report.successful,
        failed_requests=report.failed, rate_limit_hits=report.rate_limit_hits,
        avg_requests_per_hour=round(report.per_hour, 1), peak_requests_per_hour=report.peak_per_hour,
        requests_by_endpoint=report.by_endpoint, date_range=DateRange(start=iso(report.start), end=iso(report.end)),
    )  # fmt: skip
