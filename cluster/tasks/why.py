"""Why a task is where it is: each thing that keeps it from running, or how it ended, and what would change that. Pure.

`explain.py` beside it gathers the facts. Rate limits are no reason: they refuse a submission, and hold no task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cluster.clock import iso
from cluster.tasks.model import AGEING_SECONDS, FINAL, HELD, Task, TaskState, level

NAMED = 20  # agents and tasks that one blocker names
DEEPEST = 8  # dependencies of dependencies that are followed


@dataclass(frozen=True)
class Blocker:
    """One reason. `unblocks`: what would end it, in words; empty where nothing does."""

    kind: str
    message: str
    details: dict[str, Any] = field(default_factory=dict)
    unblocks: str = ""


@dataclass(frozen=True)
class Seen:
    """An agent that has the capability, as it stands now."""

    agent_id: str
    active: bool
    held: int
    capacity: int
    trust: float
    pulls: bool = False
    rests_until: datetime | None = None  # the router found it not to answer
    offered: int | None = None  # room that one which pulls asked to have filled; None: it does not ask


@dataclass(frozen=True)
class Facts:
    """What is known around a task; whoever gathers it bounds it."""

    at: datetime
    router_alive: bool = True
    agents: Sequence[Seen] = ()
    agents_left_out: int = 0  # beyond those in `agents`
    others: Mapping[str, Task] = field(default_factory=dict)  # dependencies and replicas, theirs too
    ahead: int = 0  # ready tasks of the same client that stand before it
    ready: int = 0  # ready tasks of the same client in that queue, this one included


def why(task: Task, facts: Facts) -> list[Blocker]:
    """Every reason at once; the first is the one to look at."""
    if task.state in FINAL:
        return [ended(task, facts)]
    if task.state in HELD:
        return [held(task)]
    if task.waiting_for:
        return [dependency(task, name, facts) for name in task.waiting_for[:NAMED]]
    if task.verification is not None:
        return [verification(task, facts)]
    if task.not_before is not None:
        return [schedule(task, facts)]
    return [*router(facts), *routing(task, facts)]


# ---- what is not waiting for an agent


def ended(task: Task, facts: Facts) -> Blocker:
    """How it came to its end."""
    tries = f" after {task.attempt} deliveries" if task.attempt > 1 else ""
    by = f" by {task.agent_id}" if task.agent_id else ""
    details: dict[str, Any] = {
        "attempts": task.attempt, "retries": task.retry_count, "max_retries": task.max_retries,
        "agent_id": task.agent_id or None, "error": task.error or None, "reason": task.reason or None,
        "ended_at": iso(task.completed_at) if task.completed_at else None,
    }  # fmt: skip
    if task.verification is not None:
        details |= {"agreed": task.verification.agreed, "disagreed": task.verification.disagreed}
    if task.state is TaskState.COMPLETED:
        return Blocker("completed", f"Completed{by}{tries}", details)
    if task.state is TaskState.CANCELLED:
        return Blocker("cancelled", f"Cancelled: {task.reason or 'no reason was given'}", details)
    if failed := [name for name in task.depends_on if _unsuccessful(facts.others.get(name))]:
        root, path = root_cause(failed[0], facts)
        details |= {"dependency": failed[0], "root_cause": root, "path": path}
        return Blocker("dependency", f"Failed with its dependency: {task.reason}", details, "submit both again")
    spent = f"; no retry is left of {task.max_retries}" if task.max_retries else "; it has no retries"
    message = f"{'Timed out' if task.state is TaskState.TIMEOUT else 'Failed'}{by}{tries}: {task.error}{spent}"
    return Blocker(task.state.lower(), message, details, "submit it again")


def held(task: Task) -> Blocker:
    """An agent has it."""
    details: dict[str, Any] = {
        "agent_id": task.agent_id, "attempt": task.attempt, "deadline": iso(task.deadline) if task.deadline else None,
    }  # fmt: skip
    if task.state is TaskState.ASSIGNED and task.pickup_by is not None:
        details["pickup_by"] = iso(task.pickup_by)
        return Blocker("pickup", f"Assigned to {task.agent_id}, which has not picked it up yet", details,
                       "the agent asks for its next task; if it does not by then, another gets it")  # fmt: skip
    if task.state is TaskState.ASSIGNED:
        return Blocker("delivery", f"On its way to {task.agent_id}", details, "the agent answers")
    details |= {
        "started_at": iso(task.started_at) if task.started_at else None, "progress": task.progress,
        "last_heartbeat_at": iso(task.heartbeat_at) if task.heartbeat_at else None,
    }  # fmt: skip
    return Blocker("running", f"{task.agent_id} works on it", details, "the agent reports, or its time is up")


def dependency(task: Task, name: str, facts: Facts) -> Blocker:
    """Another task comes first."""
    other = facts.others.get(name)
    root, path = root_cause(name, facts)
    state = other.state if other else "unknown"
    details = {"task_id": name, "status": state, "root_cause": root, "path": path}
    further = f", which waits in the end for {root['task_id']} ({root['message']})" if len(path) > 1 else ""
    if _unsuccessful(other):
        return Blocker("dependency", f"{name} is {state}", details, "nothing: this task fails with it in a moment")
    return Blocker(
        "dependency", f"Waits for {name}, which is {state}{further}", details, f"{root['task_id']} completes"
    )


def root_cause(name: str, facts: Facts) -> tuple[dict[str, Any], list[str]]:
    """The end of the chain of dependencies that begins with `name`: what is wrong there, and the way."""
    path = [name]
    while (other := facts.others.get(path[-1])) is not None and len(path) < DEEPEST:
        further = [n for n in other.waiting_for or other.depends_on if _blocks(other, facts.others.get(n))]
        # A task that has failed goes before one that only takes its time.
        further.sort(key=lambda n: not _unsuccessful(facts.others.get(n)))
        if not further or further[0] in path:
            break
        path.append(further[0])
    last = facts.others.get(path[-1])
    if last is None:
        return {"task_id": path[-1], "status": "unknown", "message": "unknown"}, path
    message = last.error or last.reason or _doing(last)
    return {"task_id": last.task_id, "status": last.state, "message": message}, path


def _blocks(of: Task, other: Task | None) -> bool:
    if of.state in FINAL:  # then it has failed, and only what failed before explains that
        return _unsuccessful(of) and _unsuccessful(other)
    return other is None or other.state is not TaskState.COMPLETED


def _unsuccessful(task: Task | None) -> bool:
    return task is not None and task.state in FINAL and task.state is not TaskState.COMPLETED


def _doing(task: Task) -> str:
    if task.state in HELD:
        return f"{task.agent_id} works on it"
    if task.not_before is not None:
        return f"waits until {iso(task.not_before)}"
    return f"waits for an agent with {task.capability_required}"


def schedule(task: Task, facts: Facts) -> Blocker:
    """Not before a time."""
    assert task.not_before is not None
    left = max(0.0, (task.not_before - facts.at).total_seconds())
    details = {"not_before": iso(task.not_before), "seconds_left": round(left, 3), "retry": task.retry_count,
               "max_retries": task.max_retries, "error": task.error or None}  # fmt: skip
    if task.retry_count:
        return Blocker("schedule", f"Waits {left:.1f} s before retry {task.retry_count} of {task.max_retries}, after: "
                       f"{task.error}", details, "time alone")  # fmt: skip
    return Blocker("schedule", f"Is not to begin before {iso(task.not_before)}", details, "time alone")


def verification(task: Task, facts: Facts) -> Blocker:
    """Its replicas are not in agreement yet."""
    assert task.verification is not None
    ask = task.verification
    replicas = [facts.others[name] for name in sorted(facts.others) if facts.others[name].parent_id == task.task_id]
    details = {
        "replicas": [{"task_id": r.task_id, "status": r.state, "agent_id": r.agent_id or None} for r in replicas],
        "made": ask.asked, "most": ask.most, "wrong_together_at_most": ask.target,
    }  # fmt: skip
    waiting = [r.task_id for r in replicas if r.state is TaskState.PENDING]
    done = sum(r.state is TaskState.COMPLETED for r in replicas)
    message = f"Its results are compared: {done} of {ask.asked} replicas so far have completed"
    unblocks = f"{waiting[0]} gets an agent that has no other replica: ask why it waits" if waiting else (
        "its replicas end, and enough of their agents' trust agrees")  # fmt: skip
    return Blocker("verification", message, details, unblocks)


# ---- what waits for an agent


def router(facts: Facts) -> list[Blocker]:
    """Nobody routes."""
    if facts.router_alive:
        return []
    return [Blocker("router", "The router has not been heard of", {}, "the router starts again, by itself in seconds")]


def routing(task: Task, facts: Facts) -> list[Blocker]:
    """Which agents could have it, and why none of them does."""
    if not facts.agents:
        return [Blocker("capability", f"No agent has the capability {task.capability_required}",
                        {"capability": task.capability_required}, "an agent registers with it")]  # fmt: skip
    by_kind: dict[str, list[Seen]] = {}
    for agent in facts.agents:
        by_kind.setdefault(obstacle(task, agent, facts.at), []).append(agent)
    free = by_kind.pop("", [])
    found = [] if free else [_unable(kind, task, agents) for kind, agents in by_kind.items()]
    # What is nearest to an agent first: one that is full will be free sooner than one that is inactive.
    found.sort(key=lambda blocker: ORDER.index(blocker.kind))
    if facts.ahead or free:
        found.append(queue(task, facts, free))
    return found


ORDER = ("capacity", "not_asking", "unreachable", "trust_floor", "excluded", "inactive")


def obstacle(task: Task, agent: Seen, at: datetime) -> str:
    """The first thing that keeps this agent from the task; empty for none."""
    if not agent.active:
        return "inactive"
    if agent.agent_id in task.excluded:
        return "excluded"
    if task.trust_min and agent.trust < task.trust_min:
        return "trust_floor"
    if agent.rests_until is not None and agent.rests_until > at:
        return "unreachable"
    if agent.held >= agent.capacity:
        return "capacity"
    if agent.pulls and agent.offered is None:
        return "not_asking"
    return "capacity" if agent.pulls and agent.held >= (agent.offered or 0) else ""


def _unable(kind: str, task: Task, agents: Sequence[Seen]) -> Blocker:
    """One blocker for all agents that the same thing keeps from it."""
    n = f"{len(agents)} agent{'' if len(agents) == 1 else 's'} with {task.capability_required}"
    named = [_told(kind, agent) for agent in agents[:NAMED]]
    details: dict[str, Any] = {"count": len(agents), "agents": named}
    match kind:
        case "inactive":
            return Blocker(kind, f"{n}: inactive", details, "one of them registers again or sends a heartbeat")
        case "excluded":
            return Blocker(kind, f"{n}: excluded by the task", details, "another agent registers with the capability")
        case "trust_floor":
            best = max(agent.trust for agent in agents)
            details |= {"trust_min": task.trust_min, "best": round(best, 6)}
            return Blocker(kind, f"{n}: trusted less than {task.trust_min}, at most {best:.3f}", details,
                           "one of them earns more trust, or the task asks for less")  # fmt: skip
        case "unreachable":
            soonest = min(agent.rests_until for agent in agents if agent.rests_until)
            details["next_try_at"] = iso(soonest)
            return Blocker(
                kind, f"{n}: did not answer", details, f"one of them answers; the next try is {iso(soonest)}"
            )
        case "not_asking":
            return Blocker(
                kind, f"{n}: takes its tasks itself, and does not ask", details, "one of them asks for tasks"
            )
        case _:
            return Blocker("capacity", f"{n}: holds as many tasks as it may", details,
                           "one of them ends a task, or may hold more")  # fmt: skip


def _told(kind: str, agent: Seen) -> dict[str, Any]:
    about: dict[str, Any] = {"agent_id": agent.agent_id}
    if kind == "capacity":
        about |= {"held": agent.held, "max_concurrent_tasks": agent.capacity}
        about |= {"offered": agent.offered} if agent.pulls else {}
    elif kind == "trust_floor":
        about["trust_score"] = round(agent.trust, 6)
    elif kind == "unreachable" and agent.rests_until:
        about["rests_until"] = iso(agent.rests_until)
    return about


def queue(task: Task, facts: Facts, free: Sequence[Seen]) -> Blocker:
    """Others of the same client stand before it; of other clients as many are served in turn."""
    now = facts.at.timestamp()
    details = {
        "ahead": facts.ahead, "ready_of_this_client": facts.ready, "share": task.share, "priority": task.priority,
        "priority_by_waiting": level(task.place, now), "free_agents": [agent.agent_id for agent in free[:NAMED]],
        "suspect": task.suspect,
    }  # fmt: skip
    if task.suspect:
        return Blocker("suspect", "A worker ended while it ran this task among others, so it is tried alone", details,
                       "a worker process has nothing else to do")  # fmt: skip
    if not facts.ahead:
        return Blocker("queue", "Next of its client's tasks: the router gives it out in its turn", details,
                       "the other clients' turns pass")  # fmt: skip
    n = f"{facts.ahead} task{'' if facts.ahead == 1 else 's'} of the same client"
    return Blocker("queue", f"{n} before it", details,
                   f"they are given out, or it gets a higher priority; each {AGEING_SECONDS:.0f} s of waiting count "
                   "as one step")  # fmt: skip
