"""Which event a task's change is. Pure, so that no transition can forget its event."""

from cluster.clock import iso
from cluster.events import Event
from cluster.tasks.model import FINAL, HELD, Task, TaskState

ENDED = {
    TaskState.COMPLETED: "task.completed",
    TaskState.FAILED: "task.failed",
    TaskState.CANCELLED: "task.cancelled",
    TaskState.TIMEOUT: "task.timeout",
}
OUTCOMES = frozenset({"task.completed", "task.failed", "task.timeout", "task.retry"})  # what the ledger reads


def kind_of(before: Task | None, after: Task) -> str:
    """The name of the change from `before` to `after`."""
    if before is None:
        return "task.created"
    if after.state in FINAL:
        return ENDED[after.state]
    if after.state is TaskState.ASSIGNED:
        return "task.assigned"
    if after.state is TaskState.RUNNING:
        return _running(before, after)
    if after.retry_count > before.retry_count:
        return "task.retry"
    if before.state in HELD:
        return "task.released"
    return "task.updated" if before.priority != after.priority else "task.ready"


def _running(before: Task, after: Task) -> str:
    if before.state is not TaskState.RUNNING:
        return "task.started"
    if after.extended_seconds > before.extended_seconds:
        return "task.extended"
    return "task.accepted" if after.accepted and not before.accepted else "task.progress"


def changed(before: Task | None, after: Task) -> Event:
    """The event of the change. Its data name the agent that held the task before the change, and its outcome."""
    kind = kind_of(before, after)
    held = before.agent_id if before is not None and before.agent_id else after.agent_id
    data = {
        "task_id": after.task_id, "client_id": after.client_id, "task_type": after.task_type, "status": after.state,
        "capability": after.capability_required, "agent_id": held, "attempt": after.attempt,
        "waiting": bool(after.waiting_for), "share": after.share,
    }  # fmt: skip
    if after.parent_id:
        data["parent_id"] = after.parent_id
    if after.verification is not None:
        data["verified"] = True
    if after.ready:
        data |= {"priority": after.priority, "place": after.place}
    if kind in ("task.progress", "task.extended"):
        data |= {"progress": after.progress, "message": after.progress_message}
    if kind == "task.extended" and after.deadline is not None:
        data["deadline"] = iso(after.deadline)
    if kind in OUTCOMES:
        timed_out = after.state is TaskState.TIMEOUT or (
            before is not None and before.due is not None and after.updated_at >= before.due
        )
        started = after.started_at or (before.started_at if before is not None else None)
        seconds = None if started is None else (after.updated_at - started).total_seconds()
        data |= {
            "outcome": "COMPLETED" if kind == "task.completed" else "TIMEOUT" if timed_out else "FAILED",
            "execution_time_seconds": seconds, "timeout_seconds": after.timeout_seconds, "error": after.error,
        }  # fmt: skip
    return Event(kind=kind, subject=after.task_id, owner=after.owner, at=after.updated_at, data=data)


def began(before: Task, assigned: Task, running: Task) -> tuple[Event, Event]:
    """The events of a task that is given to an agent and started in one commit."""
    return changed(before, assigned), changed(assigned, running)
