"""What a principal may do with chains."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cluster.clock import Clock, utc_now
from cluster.errors import AlreadyExists, ChainNotFound, Conflict, NotCancellable, TaskNotFound
from cluster.identity.model import Principal
from cluster.ids import new_id
from cluster.store import Page, Store, Write
from cluster.tasks.model import Task
from cluster.tasks.service import Tasks, TaskSpec
from cluster.workflows.chains import machine
from cluster.workflows.chains.machine import ENDED, changed
from cluster.workflows.chains.model import Chain, ChainState, Plan, Step
from cluster.workflows.model import Author, shelf
from cluster.workflows.submitting import check_author, submission

RACES = 100
EARLIER = 20  # chains whose steps say how long one takes


@dataclass(frozen=True)
class View:
    """A chain with its plan, and the tasks of its steps that are kept, by id."""

    chain: Chain
    steps: tuple[Step, ...]
    tasks: dict[str, Task]
    expected: datetime | None


class Chains:
    """Chain use cases. `who` has its own chains, an admin everybody's; another's is a `ChainNotFound`."""

    def __init__(self, store: Store, tasks: Tasks, clock: Clock = utc_now) -> None:
        self.store, self.tasks, self.clock = store, tasks, clock

    async def create(
        self, who: Principal, *, client_id: str, name: str, steps: Sequence[Step], description: str = ""
    ) -> tuple[Chain, datetime | None]:
        """The chain with its first task, and when it may be done. Raises `Invalid`, and as `Tasks.submit`."""
        machine.check(steps)
        # Every step is looked at now: one that nobody could submit should not show after hours.
        await self.tasks.prepare(who, [spec_of(step, client_id, None) for step in steps])
        chain = machine.created(new_id("chain"), Author.of(who), client_id, name, description, steps, self.clock())
        plan = Plan(chain_plan_id=chain.chain_id, steps=tuple(steps))
        first = await begin(self.tasks, chain, plan.steps, None)
        if not await self.store.commit(Write(None, chain, event=changed(None, chain)), Write(None, plan), first):
            raise AlreadyExists("an id was drawn twice")  # 96 random bits: not in our time
        return chain, await self._expected(chain, plan.steps)

    async def get(self, who: Principal, chain_id: str) -> Chain:
        """Raises `ChainNotFound`."""
        chain = await self.store.find(Chain, chain_id)
        if chain is None or not who.sees(chain.author.owner):
            raise ChainNotFound(f"no chain {chain_id}", chain_id=chain_id)
        return chain

    async def view(self, who: Principal, chain_id: str) -> View:
        """Raises `ChainNotFound`."""
        chain = await self.get(who, chain_id)
        plan = await self._plan(chain_id)
        tasks = await self.tasks.finished.many([step.task_id for step in chain.begun])
        return View(chain, plan.steps, {t.task_id: t for t in tasks}, await self._expected(chain, plan.steps))

    async def _plan(self, chain_id: str) -> Plan:
        plan = await self.store.find(Plan, chain_id)
        if plan is None:  # it went with its chain, between two reads
            raise ChainNotFound(f"no chain {chain_id}", chain_id=chain_id)
        return plan

    async def _expected(self, chain: Chain, steps: Sequence[Step]) -> datetime | None:
        if chain.state is not ChainState.RUNNING:
            return None
        whose = Principal(principal_id="", owner=chain.author.owner, username="")
        earlier = await self.store.page(Chain, "list", *shelf(whose), limit=EARLIER)
        return machine.expected(chain, steps, earlier.items, self.clock())

    async def page(
        self, who: Principal, *, client_id: str = "", state: ChainState | None = None, offset: int = 0, limit: int = 50
    ) -> Page[Chain]:
        """Newest first."""
        return await self.store.page(Chain, "list", *shelf(who, client_id, state or ""), offset=offset, limit=limit)

    async def cancel(self, who: Principal, chain_id: str, reason: str) -> Chain:
        """The chain, and the task that runs for it. Raises `ChainNotFound`, `NotCancellable`."""
        await self.get(who, chain_id)
        chain = await self.store.change(
            Chain, chain_id, lambda chain: machine.cancel(chain, reason, self.clock()), changed
        )
        await cancel_task(self.tasks, chain)  # the keeper does it once more, for whoever is killed in between
        return chain

    async def delete(self, who: Principal, chain_id: str) -> Chain:
        """Forget a chain that has ended; its tasks stay. Raises `ChainNotFound`, `Conflict`."""
        await self.get(who, chain_id)
        for _ in range(RACES):
            (chain, version), (plan, plan_version) = await self.store.read((Chain, chain_id), (Plan, chain_id))
            if chain is None:
                break
            if chain.state not in ENDED:
                raise Conflict("the chain has not ended", chain_id=chain_id, status=chain.state)
            gone = machine.told(chain, "chain.deleted", self.clock())
            if await self.store.commit(Write(chain, None, version, gone), Write(plan, None, plan_version)):
                return chain
        raise ChainNotFound(f"no chain {chain_id}", chain_id=chain_id)

    async def retry(self, who: Principal, chain_id: str) -> Chain:
        """Go on from the step that did not complete, with a new task. Raises `ChainNotFound`, `Conflict`."""
        await self.get(who, chain_id)
        plan = await self._plan(chain_id)
        for _ in range(RACES):
            before, version = await self.store.load(Chain, chain_id)
            if before is None:
                raise ChainNotFound(f"no chain {chain_id}", chain_id=chain_id)
            machine.retry(before, plan.steps, None, self.clock())  # or it may not
            # Its last task may be on its way still, if the chain was cancelled just now: no step runs twice at once.
            await cancel_task(self.tasks, before)
            task = await self.tasks.finished.find(before.current.task_id)
            after = machine.retry(before, plan.steps, task, self.clock())
            writes = [Write(before, after, version, changed(before, after))]
            if after.state is ChainState.RUNNING:
                await check_author(self.store, after.author)
                writes.append(await begin(self.tasks, after, plan.steps, await self._previous(after)))
            if await self.store.commit(*writes):
                return after
        raise Conflict("the chain is changed by too many at once", chain_id=chain_id)

    async def _previous(self, chain: Chain) -> Any:
        if chain.current_step == 0:
            return None
        last = chain.begun[-2]
        task = await self.tasks.finished.find(last.task_id)
        if task is None:
            raise Conflict(f"the result of step {last.name!r} is not kept any more", chain_id=chain.chain_id)
        return task.result_data


def spec_of(step: Step, client_id: str, previous: Any) -> TaskSpec:
    """The task of a step."""
    fields = step.model_dump(exclude={"name", "use_previous_output", "input_data"})
    return TaskSpec(client_id=client_id, input_data=machine.input_of(step, previous), **fields)


async def begin(tasks: Tasks, chain: Chain, steps: Sequence[Step], previous: Any) -> Write:
    """The task of the chain's current step, in its author's name."""
    spec = spec_of(steps[chain.current_step], chain.client_id, previous)
    who = chain.author.acting_for(chain.client_id)
    return await submission(tasks, who, spec, chain.chain_id, chain.current.task_id)


async def cancel_task(tasks: Tasks, chain: Chain) -> None:
    """End the task of a chain that is cancelled; nothing for one that has ended."""
    who = chain.author.acting_for(chain.client_id)
    try:
        await tasks.cancel(who, chain.current.task_id, chain.reason or "its chain was cancelled")
    except (NotCancellable, TaskNotFound):
        return
