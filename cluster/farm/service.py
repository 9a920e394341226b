"""What an owner may do with farm tasks: order, look, pause, resume, stop, remove."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from cluster.clock import Clock, utc_now
from cluster.errors import Invalid, TaskNotFound
from cluster.farm import events, machine
from cluster.farm.checkpoints import Checkpoints
from cluster.farm.fleet import Fleet
from cluster.farm.model import Client, FarmTask, Rank, RankState, TaskState, rank_id
from cluster.farm.order import Order
from cluster.identity.model import Principal
from cluster.ids import new_id
from cluster.settings import Settings
from cluster.store import Page, Store
from cluster.trust.service import Trust

FOLDER = "farm"  # in the village's home
READ = 200  # ranks read at once
Wish = Literal["paused", "running", "cancelled"]
STEPS: dict[Wish, Callable[[FarmTask, str, datetime], FarmTask]] = {
    "paused": machine.pause, "running": machine.resume, "cancelled": machine.cancel
}  # fmt: skip


@dataclass(frozen=True)
class View:
    """A task as it is told; `ranks` of this round, those that were handed out."""

    task: FarmTask
    progress: float
    metrics: dict[str, Any]
    ranks: tuple[Rank, ...] = ()


class Farm:
    """Task use cases. `who` sees its own tasks, an admin all; another's is a `TaskNotFound`."""

    def __init__(self, store: Store, trust: Trust, settings: Settings, clock: Clock = utc_now) -> None:
        self.store, self.clock = store, clock
        self.fleet = Fleet(store, trust, timedelta(seconds=settings.farm_lease_seconds), clock)
        self.checkpoints = Checkpoints(store, settings.home / FOLDER, settings.farm_upload_mb << 20, clock)

    async def order(self, who: Principal, order: Order) -> FarmTask:
        """Take a task. Raises `Invalid`."""
        if order.min_ranks and order.min_ranks > order.n_clients:
            raise Invalid("min_ranks is more than n_clients", field="min_ranks", allowed_range=[1, order.n_clients])
        at = self.clock()
        task = FarmTask(task_id=new_id("task"), owner=who.owner, order=order, created_at=at, updated_at=at)
        return await self.store.create(task, events.of_task(task, at, kind="farm.task_created"))

    async def get(self, who: Principal, task_id: str) -> FarmTask:
        """Raises `TaskNotFound`."""
        task = await self.store.find(FarmTask, task_id)
        if task is None or task.deleted or not who.sees(task.owner):
            raise TaskNotFound(f"no task {task_id}", task_id=task_id)
        return task

    async def view(self, who: Principal, task_id: str) -> View:
        """The task with its ranks of this round. Raises `TaskNotFound`."""
        task = await self.get(who, task_id)
        ids = [rank_id(task_id, task.round, number) for number in range(task.handed)]
        ranks = tuple(await self._ranks(ids))
        here = [rank for rank in ranks if rank.state in (RankState.HELD, RankState.COMPLETED)]
        completed = sum(rank.state is RankState.COMPLETED for rank in here)
        held = [rank.progress for rank in here if rank.state is RankState.HELD]
        metrics = (machine.mean_metrics(here) if task.live else {}) or task.metrics
        return View(task, machine.progress(task, completed, held), metrics, ranks)

    async def page(
        self, who: Principal, *, state: TaskState | None = None, type_: str = "", offset: int = 0, limit: int = 10
    ) -> tuple[list[View], int]:
        """Newest first, without their ranks; and how many there are."""
        parts = ["all"] if who.is_admin else ["owner", who.owner]
        parts += ["type", type_] if type_ else []
        parts += ["status", state] if state else []
        page: Page[FarmTask] = await self.store.page(FarmTask, "list", *parts, offset=offset, limit=limit)
        return [await self._glance(task) for task in page.items], page.total

    async def _glance(self, task: FarmTask) -> View:
        """Reads only the ranks that somebody works on."""
        if not task.handed or task.state is TaskState.COMPLETED:
            return View(task, machine.progress(task, 0, ()), task.metrics)
        here = (task.task_id, str(task.round))
        completed = await self.store.count(Rank, "task", *here, RankState.COMPLETED)
        held = await self._ranks(await self.store.ids(Rank, "task", *here, RankState.HELD))
        return View(task, machine.progress(task, completed, [rank.progress for rank in held]), task.metrics)

    async def _ranks(self, ids: Sequence[str]) -> list[Rank]:
        return [rank for n in range(0, len(ids), READ) for rank in await self.store.many(Rank, ids[n : n + READ])]

    async def set_status(self, who: Principal, task_id: str, wish: Wish, reason: str) -> FarmTask:
        """Pause, resume or stop it, with those who work on it. Raises `TaskNotFound`, `Conflict`."""
        await self.get(who, task_id)
        return await self._change(task_id, lambda task: STEPS[wish](task, reason, self.clock()))

    async def delete(self, who: Principal, task_id: str) -> None:
        """Stop it and forget it, with its checkpoints. Raises `TaskNotFound`."""
        await self.get(who, task_id)
        kind = "farm.task_deleted"
        await self._change(task_id, lambda task: machine.deleted(task, self.clock()), kind)

    async def _change(self, task_id: str, step: Callable[[FarmTask], FarmTask], kind: str = "") -> FarmTask:
        return await self.store.change(
            FarmTask, task_id, step, lambda _, task: events.of_task(task, task.updated_at, kind)
        )

    async def counts(self, who: Principal) -> dict[str, int]:
        """How many tasks there are, in all and by state."""
        whose = ("all",) if who.is_admin else ("owner", who.owner)
        sets = [whose, *((*whose, "status", state) for state in TaskState)]
        found = await self.store.counts(FarmTask, "list", sets)
        return dict(zip(["total", *TaskState], found, strict=True))

    async def working_on(self, view: View) -> list[Client]:
        """The clients that hold a rank of the task now."""
        ids = sorted({rank.client_id for rank in view.ranks if rank.state is RankState.HELD})
        return await self.store.many(Client, ids)


def usage(clients: Sequence[Client]) -> dict[str, float | None]:
    """Means over the clients' last heartbeats; None where nobody told."""
    means: dict[str, float | None] = {}
    for name in ("cpu_usage", "ram_usage", "gpu_usage"):
        told = [value for client in clients if (value := getattr(client.system, name)) is not None]
        means[name] = sum(told) / len(told) if told else None
    return means
