"""The clients: they submit what the plan says, when it says so, and note what they were told."""

import asyncio
import itertools
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

import aiohttp

from cluster.aside import insist
from cluster.clock import utc_now
from cluster.store import Store
from cluster.torture.notes import Notes
from cluster.torture.plan import ChainPlan, Plan, SchedulePlan, TaskPlan
from cluster.workflows.schedules.model import Schedule

PATIENCE_SECONDS = 5.0
YEARLY = "0 0 1 1 *"  # the run that counts is put before it


class Load:
    """All clients of one plan."""

    def __init__(self, plan: Plan, url: str, store: Store, notes: Notes) -> None:
        self.plan, self.url, self.store, self.notes = plan, url, store, notes
        self.ids: dict[int, str] = {}  # by number, of those that were acknowledged
        self.aside: set[asyncio.Task[None]] = set()
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_SECONDS))

    async def run(self) -> None:
        """Until the last of it is submitted, or refused."""
        batches = [list(batch) for _, batch in itertools.groupby(self.plan.tasks, key=lambda task: task.batch)]
        await asyncio.gather(
            *(self._tasks(batch) for batch in batches), *(self._chain(chain) for chain in self.plan.chains),
            *(self._schedule(schedule) for schedule in self.plan.schedules),
        )  # fmt: skip

    async def end(self) -> None:
        """Wait for what goes on beside, and give up what is to be verified: it may want more agents than there are."""
        await asyncio.gather(*self.aside)
        verified = [task for task in self.plan.tasks if "verification" in task.spec and task.number in self.ids]
        await asyncio.gather(*(self._cancel(task, self.ids[task.number], PATIENCE_SECONDS / 2) for task in verified))

    async def close(self) -> None:
        """Give the connections back."""
        for task in self.aside:
            task.cancel()
        await self.session.close()

    async def _tell(self, path: str, body: Any) -> dict[str, Any] | None:
        """What the village answered to a POST; None where that is no "yes"."""
        try:
            async with self.session.post(self.url + path, json=body) as answer:
                told = await answer.json()
                if answer.status < 300:
                    return told
                self.notes.note("refused", path=path, status=answer.status, told=told)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            self.notes.note("unanswered", path=path, error=repr(error))
        return None

    async def _tasks(self, batch: list[TaskPlan]) -> None:
        await asyncio.sleep(batch[0].at)
        specs = [task.spec | {"depends_on": [self.ids[n] for n in task.after if n in self.ids]} for task in batch]
        told = await self._tell(f"/clients/{batch[0].client}/tasks", specs)
        if told is None:
            return
        self.notes.note("acknowledged", ids=told["task_ids"])
        for task, task_id in zip(batch, told["task_ids"], strict=True):
            self.ids[task.number] = task_id
            if task.cancel_after is not None:
                self._beside(self._cancel(task, task_id, task.cancel_after))

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.aside.add(task)

    async def _cancel(self, task: TaskPlan, task_id: str, after: float) -> None:
        await asyncio.sleep(after)
        if await self._tell(f"/clients/{task.client}/tasks/{task_id}/cancel", {}) is not None:
            self.notes.note("cancelled", task_id=task_id)

    async def _chain(self, chain: ChainPlan) -> None:
        await asyncio.sleep(chain.at)
        steps = [
            {
                "name": f"step {n}", "task_type": "torture", "capability_required": capability,
                "input_data": {"n": chain.number + n}, "use_previous_output": n > 0, "timeout_seconds": 2,
                "max_retries": 2,
            }
            for n, capability in enumerate(chain.steps)
        ]  # fmt: skip
        if told := await self._tell(f"/clients/{chain.client}/chains", steps):
            self.notes.note("acknowledged", ids=[told["chain_id"]])

    async def _schedule(self, schedule: SchedulePlan) -> None:
        await asyncio.sleep(schedule.at)
        body = {
            "name": "torture", "cron_expression": YEARLY, "timezone": "UTC", "task_type": "torture",
            "capability_required": "any:v1", "input_data": {"n": schedule.number}, "timeout_seconds": 2,
        }  # fmt: skip
        told = await self._tell(f"/clients/{schedule.client}/schedules", body)
        if told is None:
            return
        self.notes.note("acknowledged", ids=[told["schedule_id"]])
        # No cron line is finer than a minute, so the next run is put where a torture sees it.
        due = (utc_now() + timedelta(seconds=schedule.due_after)).replace(microsecond=0)
        update = {"next_run_at": due}
        await insist(lambda: self.store.change(Schedule, told["schedule_id"], lambda s: s.model_copy(update=update)))
        self.notes.note("scheduled", schedule_id=told["schedule_id"], due=due.timestamp())
