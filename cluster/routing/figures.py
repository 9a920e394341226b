"""The figures of a window of tasks, recorded or simulated: times, load per agent, fairness between clients. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cluster.routing.simulate import Outcome, Run, Used, tried
from cluster.tasks.model import FINAL, Task, TaskState

QUANTILES = (50, 95, 99)


def quantiles(values: Iterable[float]) -> dict[str, float | None]:
    """Nearest-rank percentiles, in seconds; null without a value."""
    ordered = sorted(values)
    found: dict[str, float | None] = {}
    for q in QUANTILES:
        found[f"p{q}"] = round(ordered[math.ceil(q / 100 * len(ordered)) - 1], 6) if ordered else None
    return found


def jain(shares: Sequence[float]) -> float | None:
    """Jain's index (1984): 1 where all have the same, 1/n where one has everything; null for nobody."""
    squares = sum(x * x for x in shares)
    return round(sum(shares) ** 2 / (len(shares) * squares), 6) if squares else None


def figures(outcome: Outcome) -> dict[str, Any]:
    """Of a simulated, or a recorded, window."""
    over = [run for run in outcome.runs if run.ended is not None]
    states = [run.task.state for run in over]
    ends = [run.ended for run in over if run.ended]
    makespan = (max(ends) - outcome.begun).total_seconds() if ends else 0.0
    return {
        "tasks": len(outcome.runs),
        "completed": sum(state is TaskState.COMPLETED for state in states),
        "failed": sum(state in (TaskState.FAILED, TaskState.TIMEOUT) for state in states),
        "unfinished": len(outcome.runs) - len(over),
        "latency_seconds": quantiles(latency(run) for run in over),
        "waiting_seconds": quantiles((run.begun - run.arrived).total_seconds() for run in outcome.runs if run.begun),
        "makespan_seconds": round(makespan, 6),
        "agents": {name: load(used, makespan) for name, used in sorted(outcome.agents.items())},
        "fairness": fairness(over),
    }  # fmt: skip


def latency(run: Run) -> float:
    """From submission to the end."""
    assert run.ended is not None
    return max(0.0, (run.ended - run.arrived).total_seconds())


def load(used: Used, makespan: float) -> dict[str, Any]:
    """What an agent did; `busy_share` is of its capacity over the makespan."""
    whole = makespan * used.capacity
    return {
        "tries": used.tries, "completed": used.completed, "failed": used.failed,
        "busy_seconds": round(used.busy_seconds, 6),
        "busy_share": round(used.busy_seconds / whole, 6) if whole else 0.0,
    }  # fmt: skip


def fairness(over: Iterable[Run]) -> dict[str, Any]:
    """For each client the mean share of its tasks' time that they were worked on; Jain's index over the clients."""
    by_client: dict[str, list[float]] = {}
    for run in over:
        if run.begun is not None:
            whole = latency(run)
            by_client.setdefault(run.task.client_id, []).append(min(1.0, run.served / whole) if whole else 1.0)
    shares = {name: round(sum(parts) / len(parts), 6) for name, parts in sorted(by_client.items())}
    return {"jain_index": jain(list(shares.values())), "clients": shares}


def recorded(tasks: Sequence[Task], capacities: Mapping[str, int]) -> Outcome:
    """The window as it really was, as far as the tasks' records say: each one's last try."""
    runs, agents = [], {name: Used(capacity) for name, capacity in capacities.items()}
    for task in tasks:
        last = tried(task)
        over = task.completed_at if task.state in FINAL else None
        runs.append(Run(task, task.created_at, task.started_at, over, last.seconds if last else 0.0))
        if last:
            used = agents.setdefault(task.agent_id, Used(1))
            used.tries, used.busy_seconds = used.tries + 1, used.busy_seconds + last.seconds
            used.completed += last.completed
            used.failed += not last.completed
    begun = min(task.created_at for task in tasks)
    return Outcome(runs, agents, begun, max((run.ended for run in runs if run.ended), default=begun))
