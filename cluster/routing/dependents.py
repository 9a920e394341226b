"""Tasks that wait for others: what it means for them that those have ended."""

from collections.abc import Sequence

from cluster.clock import Clock
from cluster.store import Store
from cluster.tasks import machine
from cluster.tasks.finished import Finished
from cluster.tasks.model import Task
from cluster.tasks.steps import Steps

AT_ONCE = 500  # tasks of one commit


class Dependents:
    """Of one store."""

    def __init__(self, store: Store, finished: Finished, clock: Clock) -> None:
        self.store, self.finished, self.clock = store, finished, clock
        self.steps = Steps(store)

    async def free(self, ended: Sequence[str]) -> None:
        """Resolve whatever waits for one of these."""
        counts = await self.store.counts(Task, "dependents", [(task_id,) for task_id in ended])
        for task_id, count in zip(ended, counts, strict=True):
            if count:
                await self.resolve(await self.store.ids(Task, "dependents", task_id))

    async def resolve(self, task_ids: Sequence[str]) -> None:
        """Have these go on, or fail, as their dependencies have ended; those that left Redis too."""
        for start in range(0, len(task_ids), AT_ONCE):
            found = await self.store.load_many(Task, task_ids[start : start + AT_ONCE])
            names = sorted({name for task, _ in found for name in task.waiting_for})
            states = {other.task_id: other.state for other in await self.store.many(Task, names)}
            states |= await self.finished.ends([name for name in names if name not in states])
            await self.steps.many(found, lambda t, known=states: machine.resolve(t, known, self.clock()))
