"""Committing steps of the task machine, alone or many at once, however long the store is away."""

import logging
from collections.abc import Callable, Sequence

from cluster.aside import insist
from cluster.errors import Conflict, NotFound
from cluster.store import Store, Write
from cluster.tasks.events import changed
from cluster.tasks.model import Task

log = logging.getLogger("village.tasks")
Step = Callable[[Task], Task]


class Steps:
    """Of one store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def one(self, task_id: str, step: Step) -> Task | None:
        """Commit a step, however long Redis is away; None, and nothing done, for one that has become stale."""
        try:
            return await insist(lambda: self.store.change(Task, task_id, step, changed))
        except (Conflict, NotFound) as error:
            log.info("%s: %s", task_id, error)
            return None

    async def many(self, found: Sequence[tuple[Task, str]], step: Step) -> int:
        """The same step for many in one commit, those that somebody changed meanwhile one by one. How many it moved.

        Raises `Unavailable`.
        """
        writes = []
        for task, version in found:
            try:
                after = step(task)
            except Conflict:
                continue
            if after != task:
                writes.append(Write(task, after, version, changed(task, after)))
        for write, won in zip(writes, await self.store.commit_each(writes), strict=True):
            if not won and write.before:
                await self.one(write.before.id, step)
        return len(writes)
