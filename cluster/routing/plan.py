"""The commit that gives a task to an agent. Pure."""

from datetime import datetime

from cluster.routing.table import Entry, in_village
from cluster.store import Guard, Write
from cluster.tasks import machine
from cluster.tasks.events import began, changed
from cluster.tasks.model import Task

PICKUP_SECONDS = 15.0  # an agent that pulls and offered room has to take a task within


def plan(task: Task, version: str, entry: Entry, inbox: str, at: datetime, chance: str) -> Write:
    """Assigned and started in one; only assigned for an agent that has to pick it up. `chance`: for its token."""
    agent = entry.agent
    guard = Guard("held", (agent.agent_id,), agent.max_concurrent_tasks)
    token = machine.token(task, chance)
    village = in_village(agent.agent_id, inbox)
    if inbox and not village:
        assigned = machine.assign(task, agent.agent_id, token, at, inbox=inbox, pickup_seconds=PICKUP_SECONDS)
        return Write(task, assigned, version, changed(task, assigned), guard)
    assigned = machine.assign(task, agent.agent_id, token, at, inbox=inbox)
    running = (machine.accept if village else machine.start)(assigned, assigned.attempt, at)
    return Write(task, running, version, began(task, assigned, running), guard)
