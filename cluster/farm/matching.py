"""Who gets which rank: requirements, and in which order. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster.farm.resources import Requirements, Resources


@dataclass(frozen=True)
class Work:
    """A task with ranks to hand out. `avoid`: clients that have failed at it in this round."""

    task_id: str
    ranks: int
    requirements: Requirements
    avoid: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Waiting:
    """A client that waits; `since` orders those who are trusted alike."""

    client_id: str
    resources: Resources | None
    trust: float
    since: float


def lacks(wanted: Requirements, has: Resources | None) -> str:
    """Which requirement the resources cannot hold; empty where they hold all. Who told none meets no requirement."""
    if wanted == Requirements():
        return ""
    if has is None:
        return "resources"
    if wanted.min_cpu_cores > (has.cpu.cores if has.cpu else 0):
        return "min_cpu_cores"
    if wanted.min_ram > (has.ram.free if has.ram else 0):
        return "min_ram"
    if wanted.min_gpu_memory > max((gpu.memory.free for gpu in has.gpu), default=0):
        return "min_gpu_memory"
    return ""


def match(tasks: Iterable[Work], clients: Sequence[Waiting]) -> list[tuple[str, str]]:
    """(client, task) pairs, each client once: tasks in their order, and for each the clients of the highest trust.

    A task that nobody here can hold keeps nobody from those behind it. Who has failed at a task gets it again only
    where nobody else can.
    """
    free = sorted(clients, key=lambda client: (-client.trust, client.since, client.client_id))
    pairs: list[tuple[str, str]] = []
    for task in tasks:
        if not free:
            break
        fit = [client for client in free if not lacks(task.requirements, client.resources)]
        fit.sort(key=lambda client: client.client_id in task.avoid)
        chosen = {client.client_id for client in fit[: task.ranks]}
        pairs += [(client.client_id, task.task_id) for client in fit[: task.ranks]]
        free = [client for client in free if client.client_id not in chosen]
    return pairs
