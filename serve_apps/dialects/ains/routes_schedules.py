"""DukeNet AINS, scheduled tasks: parse, call the core, render."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from cluster.clock import iso
from cluster.routing.strategies import DEFAULT
from cluster.workflows.schedules.cron import zone
from cluster.workflows.schedules.model import Firing, Outcome, Schedule
from serve_apps.core import FromCore
from serve_apps.dialects.ains.fields import (
    ClientFilter,
    Data,
    Name,
    Priority,
    Retries,
    Silence,
    Strategy,
    Text,
    Timeout,
    TrustMin,
    paged,
    stamp,
)
from serve_apps.dialects.ains.routes_tasks import submitted
from serve_apps.kit.auth import SignedIn
from serve_apps.kit.pagination import Limit50, Offset

router = APIRouter(prefix="/ains/scheduled-tasks")

Cron = Annotated[
    str, Field(max_length=200, description="Minute, hour, day of month, month, day of week; names as in `MON-FRI`")
]
Zone = Annotated[str, Field(max_length=100, description="An IANA name, as in `America/New_York`")]


class ScheduleRequest(BaseModel):
    """A task, and when it is wanted."""

    name: Name
    client_id: Name
    description: Text = ""
    cron_expression: Cron
    timezone: Zone = "UTC"
    task_type: Name
    capability_required: Name
    input_data: Data = {}
    priority: Priority = 5
    timeout_seconds: Timeout = 300
    max_retries: Retries = 3
    routing_strategy: Strategy = DEFAULT
    trust_min: TrustMin = 0.0
    heartbeat_seconds: Silence = 0
    metadata: Data = {}
    active: bool = True


class ScheduleChange(BaseModel):
    """What is given changes; `active: false` pauses, `active: true` resumes."""

    name: Name | None = None
    description: Text | None = None
    cron_expression: Cron | None = None
    timezone: Zone | None = None
    task_type: Name | None = None
    capability_required: Name | None = None
    input_data: Data | None = None
    priority: Priority | None = None
    timeout_seconds: Timeout | None = None
    max_retries: Retries | None = None
    routing_strategy: Strategy | None = None
    trust_min: TrustMin | None = None
    heartbeat_seconds: Silence | None = None
    metadata: Data | None = None
    active: bool | None = None


def local(schedule: Schedule, at: datetime | None) -> str | None:
    """A time of the schedule's, as the clock of its zone shows it."""
    return None if at is None else at.astimezone(zone(schedule.timezone)).isoformat()


def shown(schedule: Schedule) -> dict[str, Any]:
    """A schedule."""
    return {
        "schedule_id": schedule.schedule_id, "name": schedule.name, "client_id": schedule.client_id,
        "description": schedule.description, "cron_expression": schedule.cron_expression,
        "timezone": schedule.timezone, "task_type": schedule.task_type,
        "capability_required": schedule.capability_required, "input_data": schedule.input_data,
        "priority": schedule.priority, "timeout_seconds": schedule.timeout_seconds,
        "max_retries": schedule.max_retries, "routing_strategy": schedule.routing_strategy,
        "trust_min": schedule.trust_min, "heartbeat_seconds": schedule.heartbeat_seconds,
        "metadata": schedule.metadata, "active": schedule.active,
        "next_run_at": local(schedule, schedule.next_run_at),
        "last_run_at": stamp(schedule.last_run_at), "last_task_id": schedule.last_task_id or None,
        "runs_fired": schedule.runs_fired, "runs_skipped": schedule.runs_skipped,
        "created_at": iso(schedule.created_at), "updated_at": iso(schedule.updated_at),
    }  # fmt: skip


def ran(schedule: Schedule, run: Firing) -> dict[str, Any]:
    """What became of one run. One by hand has no time that it was scheduled for."""
    return {
        "run_id": run.firing_id, "schedule_id": run.schedule_id, "outcome": run.outcome,
        "scheduled_for": local(schedule, run.scheduled_for), "task_id": run.task_id or None,
        "reason": run.reason or None, "created_at": iso(run.created_at),
    }  # fmt: skip


@router.post("", status_code=201)
async def create_schedule(body: ScheduleRequest, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Have a task made each time that a cron expression says."""
    return shown(await core.schedules.create(who, **dict(body)))


@router.get("")
async def list_schedules(
    who: SignedIn, core: FromCore, client_id: ClientFilter = "",
    active: Annotated[bool | None, Query(description="Only active ones, or only paused ones")] = None,
    limit: Limit50 = 50, offset: Offset = 0,
) -> dict[str, Any]:  # fmt: skip
    """Schedules, newest first."""
    page = await core.schedules.page(who, client_id=client_id, active=active, offset=offset, limit=limit)
    return paged([shown(schedule) for schedule in page.items], page.total, limit, offset)


@router.get("/{schedule_id}")
async def get_schedule(schedule_id: str, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """A schedule."""
    return shown(await core.schedules.get(who, schedule_id))


@router.patch("/{schedule_id}")
async def update_schedule(schedule_id: str, body: ScheduleChange, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Change a schedule, for the tasks that it makes from now on."""
    given = {name: value for name, value in dict(body).items() if value is not None}
    return shown(await core.schedules.update(who, schedule_id, **given))


@router.delete("/{schedule_id}")
async def delete_schedule(schedule_id: str, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Remove a schedule and the record of its runs; tasks that it made stay."""
    schedule = await core.schedules.delete(who, schedule_id)
    return {
        "schedule_id": schedule.schedule_id, "deleted_at": iso(core.clock()),
        "message": "Scheduled task deleted successfully",
    }  # fmt: skip


@router.post("/{schedule_id}/pause")
async def pause_schedule(schedule_id: str, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Make no more tasks until it is resumed."""
    return shown(await core.schedules.update(who, schedule_id, active=False))


@router.post("/{schedule_id}/resume")
async def resume_schedule(schedule_id: str, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Go on with the next time from now; what was due meanwhile is not made up for."""
    return shown(await core.schedules.update(who, schedule_id, active=True))


@router.post("/{schedule_id}/run-now", status_code=201)
async def run_schedule_now(schedule_id: str, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Make the task now, whatever the clock says, unless the one before has not ended."""
    task = await core.schedules.run_now(who, schedule_id)
    return submitted(task) | {"schedule_id": schedule_id}


@router.get("/{schedule_id}/runs")
async def list_schedule_runs(
    schedule_id: str, who: SignedIn, core: FromCore,
    outcome: Annotated[Outcome | None, Query(description="Only runs with this outcome")] = None,
    limit: Limit50 = 50, offset: Offset = 0,
) -> dict[str, Any]:  # fmt: skip
    """What became of the last 1000 runs, newest first."""
    schedule = await core.schedules.get(who, schedule_id)
    page = await core.schedules.runs(who, schedule_id, outcome, offset, limit)
    return paged([ran(schedule, run) for run in page.items], page.total, limit, offset)
