"""Cancelling several tasks at once, each with its own answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from cluster.errors import Conflict, NotCancellable, NotFound, TaskNotFound, VillageError
from cluster.identity.model import Principal
from cluster.store import Store, Write
from cluster.tasks import machine
from cluster.tasks.events import changed
from cluster.tasks.finished import Finished
from cluster.tasks.listing import Filter, find
from cluster.tasks.model import FINAL, Task, TaskState

MOST = 1000  # in one call
TOGETHER = 100  # in one commit
ROUNDS = 40  # pages that are looked through for them
LIVE = frozenset(TaskState) - FINAL
Versioned = tuple[Task, str]


@dataclass
class Cancelled:
    """What came of it: ids, why others were not cancelled, and whether the call left some that it would have taken."""

    task_ids: list[str] = field(default_factory=list)
    refused: dict[str, VillageError] = field(default_factory=dict)
    more: bool = False


async def cancel_many(
    finished: Finished, who: Principal, wanted: Filter, task_ids: Sequence[str], reason: str, at: datetime
) -> Cancelled:
    """Cancel these tasks as far as they are wanted, or without ids the wanted ones that have not ended."""
    done, store = Cancelled(), finished.store
    if task_ids:
        found = await _named(finished, who, wanted, task_ids, done)
    else:
        ids = await _live(store, who, wanted, done)
        found = await store.load_many(Task, ids)
    # The newest first: who depends on another goes before it, and is cancelled by name instead of failed with it.
    found = sorted(found, key=lambda row: row[0].created_at, reverse=True)
    for start in range(0, len(found), TOGETHER):
        await _cancel(store, found[start : start + TOGETHER], reason, at, done)
    return done


async def _live(store: Store, who: Principal, wanted: Filter, done: Cancelled) -> list[str]:
    ids: list[str] = []
    cursor = ""
    for _ in range(ROUNDS):
        page = await find(store, who, replace(wanted, states=LIVE), cursor=cursor, limit=MOST - len(ids))
        ids += [task.task_id for task in page.items]
        cursor = page.cursor
        if not cursor or len(ids) == MOST:
            break
    done.more = bool(cursor)
    return ids


async def _named(
    finished: Finished, who: Principal, wanted: Filter, task_ids: Sequence[str], done: Cancelled
) -> list[Versioned]:
    names = list(dict.fromkeys(task_ids))
    found = {task.task_id: (task, version) for task, version in await finished.store.load_many(Task, names)}
    if missing := [name for name in names if name not in found]:
        found |= {task.task_id: (task, "") for task in await finished.many(missing)}  # ended, and not in the store
    kept: list[Versioned] = []
    for name in names:
        task, version = found.get(name, (None, ""))
        if task is None or not who.sees(task.owner):
            done.refused[name] = TaskNotFound(f"no task {name}", task_id=name)
        elif not wanted.matches(task):
            done.refused[name] = Conflict("the task is another client's or parent's", task_id=name)
        else:
            kept.append((task, version))
    return kept


async def _cancel(store: Store, found: Sequence[Versioned], reason: str, at: datetime, done: Cancelled) -> None:
    writes: list[tuple[str, Write]] = []
    for task, version in found:
        try:
            after = machine.cancel(task, reason, at)
        except NotCancellable as error:
            done.refused[task.task_id] = error
            continue
        writes.append((task.task_id, Write(task, after, version, changed(task, after))))
    won = await store.commit_each([write for _, write in writes])
    for (task_id, _), mine in zip(writes, won, strict=True):
        try:
            if not mine:  # it has moved meanwhile
                await store.change(Task, task_id, lambda task: machine.cancel(task, reason, at), changed)
            done.task_ids.append(task_id)
        except (Conflict, NotFound) as error:
            done.refused[task_id] = error
