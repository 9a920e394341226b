"""DukeNet AINS, why a task waits: parse, call the core, render."""

from typing import Any

from fastapi import APIRouter

from cluster.clock import iso
from serve_apps.core import FromCore
from serve_apps.kit.auth import SignedIn

router = APIRouter(prefix="/ains/tasks")


@router.get("/{task_id}/why")
async def why(task_id: str, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Each thing that keeps the task from running and what would change that, or how it ended."""
    found = await core.explainer.why(who, task_id)
    task = found.task
    return {
        "task_id": task.task_id, "status": task.state,
        "age_seconds": round(((task.completed_at or found.at) - task.created_at).total_seconds(), 3),
        "blockers": [
            {"kind": b.kind, "message": b.message, "details": b.details, "unblocks": b.unblocks or None}
            for b in found.blockers
        ],
        "checked_at": iso(found.at),
    }  # fmt: skip
