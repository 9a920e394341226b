"""What the tests of the task archive share: tasks of every kind, readers that are up to date, and a mover."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cluster.clock import utc_now
from cluster.events.cursor import Cursor
from cluster.store import Store, Write
from cluster.tasks import machine
from cluster.tasks.archive import TaskArchive
from cluster.tasks.events import changed
from cluster.tasks.model import FINAL, Task, TaskState
from cluster.tasks.mover import READERS, Mover
from cluster.tasks.service import Tasks

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
OWNERS = {"user_ann": ("shop", "bank"), "user_ben": ("shop",), "client_shop": ("shop",)}
FOREVER = timedelta(days=36_500)


def a_task(n: int, **fields) -> Task:
    """Many of one instant; every field in turn."""
    owner = list(OWNERS)[n % 3]
    at = NOON + timedelta(seconds=n // 7)
    state = list(TaskState)[n % 7]
    told = {
        "task_id": f"task_{(n * 37) % 10_000:04}", "owner": owner, "client_id": OWNERS[owner][n % len(OWNERS[owner])],
        "task_type": ("sum", "sort")[n % 2], "capability_required": ("a:v1", "b:v1")[n // 2 % 2],
        "priority": 1 + n % 10, "parent_id": ("", "chain_1")[n % 5 == 0], "state": state,
        "agent_id": ("", "ada", "bob")[n % 3], "input_data": {"n": n}, "created_at": at, "updated_at": at,
        "completed_at": at if state in FINAL else None, "result_data": {"text": f"ü{n}"},
    }  # fmt: skip
    return Task(**told | fields)


async def filled(store: Store, count: int, **fields) -> list[Task]:
    tasks = [a_task(n, **fields) for n in range(count)]
    await store.commit_each([Write(None, task) for task in tasks])
    await all_read(store)
    return tasks


async def all_read(store: Store, event_id: str = "evt_99999999999999-0", *but: str) -> None:
    """Every reader of the stream has come so far."""
    for name in READERS - set(but):
        place = Cursor(cursor_id=name, event_id=event_id)
        await store.upsert(place, lambda _, place=place: place)


def mover(store: Store, folder: Path, keep_tasks: int = 0, keep: timedelta = FOREVER) -> Mover:
    return Mover(store, TaskArchive(folder), keep, keep_tasks)


def tasks_of(store: Store, folder: Path) -> Tasks:
    return Tasks(store, archive=TaskArchive(folder))


async def end(store: Store, task_id: str, result: Any = None, error: str = "") -> Task:
    """The task as its agent leaves it."""

    def step(task: Task) -> Task:
        at = utc_now()
        held = machine.assign(task, "ada", "1.token", at)
        if not error:
            return machine.finish(held, held.attempt, result, at)
        last = held.model_copy(update={"retry_count": held.max_retries})
        return machine.fail(last, held.attempt, error, at, 0.0)

    return await store.change(Task, task_id, step, changed)
