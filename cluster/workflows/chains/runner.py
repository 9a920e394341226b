"""The runner of chains: each task of a chain that ends moves it on.

The chain and its next task change in one commit, and the task's id follows from the chain, so a runner that is killed
anywhere, or has a twin, neither leaves a step out nor begins it twice: whoever comes next goes on from the cursor.
"""

import asyncio
import logging
from collections.abc import Awaitable

from cluster import tracing
from cluster.clock import Clock, utc_now
from cluster.errors import Conflict, Unavailable, VillageError
from cluster.events import Event
from cluster.events.cursor import keep_place, place_of
from cluster.events.keeping import keep
from cluster.events.model import START
from cluster.origin import within
from cluster.presence import BEAT_SECONDS, beat
from cluster.settings import Settings
from cluster.store import Store, Write
from cluster.tasks.events import ENDED
from cluster.tasks.model import FINAL, Task
from cluster.tasks.service import Tasks
from cluster.workflows.chains import machine
from cluster.workflows.chains.machine import changed
from cluster.workflows.chains.model import PREFIX, Chain, ChainState, Plan
from cluster.workflows.chains.service import RACES, begin, cancel_task
from cluster.workflows.submitting import check_author

log = logging.getLogger("village.chains")
CANCELLED = "chain.cancelled"
KINDS = frozenset({*ENDED.values(), CANCELLED})
MARKS = (f'"parent_id":"{PREFIX}', f'"subject":"{PREFIX}')
AT_ONCE = 32  # chains that are moved on beside each other


class ChainRunner:
    """See the module."""

    NAME = "chains"

    def __init__(self, store: Store, tasks: Tasks, clock: Clock = utc_now) -> None:
        self.store, self.tasks, self.clock = store, tasks, clock
        self.cursor = START
        self.moved = 0

    async def open(self) -> None:
        """Find the place where the last runner stopped."""
        self.cursor = await place_of(self.store, self.NAME)

    async def step(self, wait_seconds: float = BEAT_SECONDS) -> int:
        """Read one batch and move on every chain that it concerns; whether there was anything to read."""
        batch, through = await self.store.batch(self.cursor, KINDS, wait_seconds=wait_seconds, marks=MARKS)
        wanted = [event for event in batch if concerns(event)]
        for start in range(0, len(wanted), AT_ONCE):
            await asyncio.gather(*(self._observe(event) for event in wanted[start : start + AT_ONCE]))
        read, self.cursor = through != self.cursor, through
        if wanted:  # skipping what is nothing to chains is cheap to repeat; the next beat notes it
            await keep_place(self.store, self.NAME, self.cursor)
        return read

    def _observe(self, event: Event) -> Awaitable[None]:
        return self._stop(event) if event.kind == CANCELLED else self._move(event)

    async def _stop(self, event: Event) -> None:
        """Whoever cancelled the chain may have been killed before its task was."""
        chain = await self.store.find(Chain, event.subject)
        if chain is not None and chain.state is ChainState.CANCELLED:
            await cancel_task(self.tasks, chain)

    async def _move(self, event: Event) -> None:
        chain_id, header = event.data["parent_id"], event.origin.traceparent if event.origin else ""
        with tracing.span("chain.advance", header, chain_id=chain_id), within(tracing.origin()):
            for _ in range(RACES):
                if await self._moved(chain_id, event.subject):
                    return
        raise Conflict("the chain is changed by too many at once", chain_id=chain_id)

    async def _moved(self, chain_id: str, task_id: str) -> bool:
        """Whether nothing is left to do; else somebody was faster."""
        (chain, version), (plan, _), (task, _) = await self.store.read(
            (Chain, chain_id), (Plan, chain_id), (Task, task_id)
        )
        if chain is None or plan is None or chain.state is not ChainState.RUNNING or chain.current.task_id != task_id:
            return True
        if task is not None and task.state not in FINAL:
            return True
        try:
            if task is None:
                raise Conflict(f"the result of step {chain.current.name!r} is not kept any more")
            after = machine.settle(chain, plan.steps, task, self.clock())
            writes = [Write(chain, after, version, changed(chain, after))]
            if after.state is ChainState.RUNNING:
                await check_author(self.store, after.author)
                writes.append(await begin(self.tasks, after, plan.steps, task.result_data))
            won = await self.store.commit(*writes)
        except Unavailable:
            raise
        except Exception as error:
            # Nobody would come back to it: a chain that cannot go on says so instead of waiting for ever.
            reason = error.message if isinstance(error, VillageError) else "an unexpected error; it is in the log"
            if not isinstance(error, VillageError):
                log.exception("%s cannot go on", chain_id)
            after = machine.give_up(chain, task, reason, self.clock())
            won = await self.store.commit(Write(chain, after, version, changed(chain, after)))
        self.moved += won
        return won

    async def beat(self) -> None:
        """Say that chains are moved on, and how far."""
        await keep_place(self.store, self.NAME, self.cursor)
        await beat(self.store, self.NAME, self.clock(), {"cursor": self.cursor, "moved": self.moved})


def concerns(event: Event) -> bool:
    """Whether a chain may have to move, or to be stopped."""
    return event.kind == CANCELLED or str(event.data.get("parent_id", "")).startswith(PREFIX)


async def run_chains(store: Store, settings: Settings) -> None:
    """The loop that the village runs."""
    await keep(ChainRunner(store, Tasks(store)))
