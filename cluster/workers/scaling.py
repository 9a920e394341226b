"""How many workers a pool shall have. Pure."""

from cluster.workers.work import PoolConfig


def wanted(config: PoolConfig, most: int, now: int, waiting: int, idle_seconds: float) -> int:
    """Workers to run: one more for every `tasks_per_worker` that wait, at once; one fewer when all have been idle.

    `most`: of the cluster, where the configuration leaves it open. `waiting`: ready tasks that no worker holds.
    """
    highest = max(config.workers_min, config.workers_max or most)
    target = now + -(-waiting // config.tasks_per_worker)
    if not waiting and idle_seconds >= config.idle_seconds:
        target = now - 1
    return min(highest, max(config.workers_min, target))
