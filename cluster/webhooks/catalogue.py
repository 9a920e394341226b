"""The events that a webhook may ask for: one literal table, by the names that the documents give them. Pure."""

from collections.abc import Iterable
from typing import Any

from cluster.errors import Invalid
from cluster.webhooks.model import Webhook

MAX_FILTERS = 50
TEST = "webhook.test"

# Public name -> kind in the stream. Those whose part is not built yet are taken, and come once the stream has them.
EVENTS: dict[str, str] = {
    # DukeNet AINS
    "task.created": "task.created",
    "task.assigned": "task.assigned",
    "task.started": "task.started",
    "task.completed": "task.completed",
    "task.failed": "task.failed",
    "task.cancelled": "task.cancelled",
    "task.timeout": "task.timeout",
    "task.retry": "task.retry",
    "agent.registered": "agent.registered",
    "agent.updated": "agent.updated",
    "agent.deactivated": "agent.deactivated",
    "chain.started": "chain.started",
    "chain.completed": "chain.completed",
    "chain.failed": "chain.failed",
    # AI Orchestra
    "chat.completed": "chat.completed",
    "session.ended": "session.ended",
    # AI Forge: status of jobs, missions, deployments. Every training run is a job, whichever dialect began it.
    "job.created": "training.created",
    "job.started": "training.started",
    "job.retried": "training.retried",
    "job.completed": "training.completed",
    "job.failed": "training.failed",
    "job.resumed": "training.resumed",
    "job.cancelled": "training.cancelled",
    "mission.created": "mission.created",
    "mission.approved": "mission.approved",
    "mission.rejected": "mission.rejected",
    "mission.completed": "mission.completed",
    "mission.failed": "mission.failed",
    "deployment.created": "deployment.created",
    "deployment.activated": "deployment.activated",
    "deployment.failed": "deployment.failed",
    "deployment.rolled_back": "deployment.rolled_back",
    # AIVillage
    "model.created": "model.created",
    "model.deleted": "model.deleted",
    "knowledge.added": "knowledge.added",
    "knowledge.deleted": "knowledge.deleted",
    # A webhook's owner may want to hear of it through another one.
    "webhook.disabled": "webhook.disabled",
}
NAMES: dict[str, str] = {kind: name for name, kind in EVENTS.items()}  # what an event of the stream is called outside
FILTERS = ("*", *sorted({name.partition(".")[0] + ".*" for name in EVENTS}), *EVENTS)


def checked(filters: Iterable[str]) -> tuple[str, ...]:
    """The filters without repetition. Raises `Invalid` for one that can match nothing."""
    wanted = tuple(dict.fromkeys(filters))
    if not 1 <= len(wanted) <= MAX_FILTERS:
        raise Invalid(f"1 to {MAX_FILTERS} event names are wanted", field="events", allowed_values=list(FILTERS))
    if unknown := [name for name in wanted if name not in FILTERS]:
        raise Invalid(f"no such event: {unknown[0][:60]}", field="events", allowed_values=list(FILTERS))
    return wanted


def matches(filters: Iterable[str], name: str) -> bool:
    """Whether one of the filters is the name, its noun with `.*`, or `*`."""
    return bool({"*", name, name.partition(".")[0] + ".*"}.intersection(filters))


def concerns(hook: Webhook, owner: str, data: dict[str, Any], agent_owner: str) -> bool:
    """Whether the hook's owner may see an event of `owner`, and the event is about the hook's agent if it has one.

    Whoever owns the agent sees what happens to any task that it was given: it was sent the task itself.
    """
    if hook.agent_id and data.get("agent_id") != hook.agent_id:
        return False
    return owner == hook.owner or hook.all_owners or bool(hook.agent_id and agent_owner == hook.owner)
