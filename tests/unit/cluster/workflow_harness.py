"""What the tests of chains, schedules and templates share: who asks, and how a task ends without a router."""

from typing import Any

from cluster.clock import utc_now
from cluster.identity.model import Principal
from cluster.store import Store
from cluster.tasks import machine
from cluster.tasks.events import changed
from cluster.tasks.model import FINAL, Task, TaskState

SCOPES = frozenset({"read", "write"})
ANN = Principal(principal_id="key_1", owner="client_ann", username="ann", client_id="ann", scopes=SCOPES)
BEN = Principal(principal_id="key_2", owner="client_ben", username="ben", client_id="ben", scopes=SCOPES)


async def end(store: Store, task_id: str, result: Any = None, error: str = "", cancelled: bool = False) -> Task:
    """The task as its agent, or whoever cancels it, leaves it; one that has ended stays as it is."""

    def step(task: Task) -> Task:
        at = utc_now()
        if task.state in FINAL:
            return task
        if cancelled:
            return machine.cancel(task, error, at)
        held = task if task.state is not TaskState.PENDING else machine.assign(task, "ada", "1.token", at)
        if not error:
            return machine.finish(held, held.attempt, result, at)
        last = held.model_copy(update={"retry_count": held.max_retries})
        return machine.fail(last, held.attempt, error, at, 0.0)

    return await store.change(Task, task_id, step, changed)
