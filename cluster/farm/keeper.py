"""The keeper of the farm: hands out ranks, takes them back, ends rounds and averages them.

What clients and owners do is one commit each and needs no keeper; what follows from it is decided here alone. It keeps
nothing of its own: whoever starts looks at every task that is not settled and goes on. Several at once do the same
work twice and no more.
"""

import asyncio
import logging
from datetime import timedelta

from cluster.aside import Aside, insist
from cluster.clock import Clock, utc_now
from cluster.errors import Unavailable, VillageError
from cluster.events.keeping import keep
from cluster.events.model import START
from cluster.farm import events, holding, machine
from cluster.farm.assigner import Assigner
from cluster.farm.averaging import Averaged
from cluster.farm.checkpoints import Files, share
from cluster.farm.deciding import Decided, decide
from cluster.farm.machine import TaskEvent, Verdict
from cluster.farm.model import Client, Desk, FarmTask, Rank, RankState, Round
from cluster.farm.service import FOLDER, READ
from cluster.presence import beat
from cluster.settings import Settings
from cluster.store import Store, Write
from cluster.trust.service import Trust

log = logging.getLogger("village.farm")

TICK_SECONDS = 0.5
PAUSED_LOOK_SECONDS = 5.0
AT_ONCE = 100  # deadlines looked at in one step
FORGET_DESK = timedelta(hours=1)
SETTLES = frozenset(
    {
        "farm.rank_completed", "farm.rank_failed", "farm.rank_timeout", "farm.rank_released", "farm.task_resumed",
        "farm.task_cancelled", "farm.task_deleted", "farm.task_failed", "farm.task_completed", "farm.round_completed",
    }
)  # fmt: skip
MATCHES = SETTLES | {"farm.task_created", "farm.client_waiting"}


class FarmKeeper:
    """See the module."""

    NAME = "farm"

    def __init__(self, store: Store, files: Files, trust: Trust, lease: timedelta, clock: Clock = utc_now) -> None:
        self.store, self.files, self.clock = store, files, clock
        self.assigner = Assigner(store, trust, lease, clock)
        self.aside = Aside(log)
        self.closing: set[str] = set()  # tasks whose round is being averaged
        self.cursor = START
        self.rounds = 0
        self.ticked = -TICK_SECONDS

    async def open(self) -> None:
        """Look at all that is not settled."""
        self.cursor = await self.store.last_event_id()
        for task_id in await self.store.ids(FarmTask, "unsettled"):
            await self._settle(task_id)
        await self.assigner.match()

    async def step(self, wait_seconds: float = TICK_SECONDS) -> int:
        """Read one batch of events and do what follows; then what the time brings. How many events it was."""
        batch, after = await self.store.batch(self.cursor, MATCHES, wait_seconds=wait_seconds)
        touched = dict.fromkeys(event.subject for event in batch if event.kind in SETTLES)
        for task_id in touched:
            await self._settle(task_id)
        now = asyncio.get_running_loop().time()
        if not batch or now - self.ticked >= TICK_SECONDS:  # not with every one of many small batches
            self.ticked = now
            await self._tick()
        if any(event.kind in MATCHES for event in batch) or self.assigner.is_due():
            await self.assigner.match()
        self.cursor = after
        return len(batch)

    async def beat(self) -> None:
        """Say that the farm is kept, and forget processes that are gone."""
        old = (self.clock() - FORGET_DESK).timestamp()
        for desk_id in await self.store.ids(Desk, "at", high=old, limit=AT_ONCE):
            desk, version = await self.store.load(Desk, desk_id)
            if desk is not None:
                await self.store.commit(Write(desk, None, version))
        data = {"cursor": self.cursor, "handed_out": self.assigner.handed_out, "rounds": self.rounds}
        await beat(self.store, self.NAME, self.clock(), data)

    # ---- time

    async def _tick(self) -> None:
        now = self.clock().timestamp()
        for client_id in await self.store.ids(Client, "lease", high=now, limit=AT_ONCE):
            client = await self.store.find(Client, client_id)
            if client is not None and client.holds:
                await self._take(client.holds, "its client was not heard of in time", late=False)
        for rank_id in await self.store.ids(Rank, "deadline", high=now, limit=AT_ONCE):
            await self._take(rank_id, "it took longer than timeout_seconds", late=True)
        for task_id in await self.store.ids(FarmTask, "cut", high=now, limit=AT_ONCE):
            await self._settle(task_id)

    async def _take(self, rank_id: str, reason: str, late: bool | None) -> None:
        """Take a rank out of its client's hands, if it is time. `late` None: whatever the time."""
        rank = await self.store.find(Rank, rank_id)
        if rank is None:
            return

        def plan(client: Client | None, rank: Rank | None, task: FarmTask | None) -> list[Decided] | None:
            at = self.clock()
            if rank is None or rank.state is not RankState.HELD:
                return None
            wanted = task is not None and task.live and task.round == rank.round
            if wanted and task and late:
                due = machine.deadline(task, rank, at)
                if at < due or task.paused_at is not None:
                    # A pause has moved it. While the pause lasts it moves on: looked at again in a while.
                    later = rank.model_copy(update={"deadline": max(due, at + timedelta(seconds=PAUSED_LOOK_SECONDS))})
                    return [(client, None), (later, None), (task, None)]
            if late is False and (client is None or client.lease_until is None or client.lease_until > at):
                return None  # heard of this moment
            after, free, told = holding.taken(task, rank, client, at, reason, late=bool(late))
            return [(free, None), (after, told), (task, None)]

        await decide(self.store, [(Client, rank.client_id), (Rank, rank_id), (FarmTask, rank.task_id)], plan)

    # ---- tasks

    async def _settle(self, task_id: str) -> None:
        """`settle`; one task that cannot be must not keep the others from it."""
        try:
            await self.settle(task_id)
        except Unavailable:
            raise
        except Exception:
            log.exception("%s could not be settled", task_id)

    async def settle(self, task_id: str) -> None:
        """Whatever follows from how the task and its ranks are now."""
        task = await self.store.find(FarmTask, task_id)
        if task is None or task_id in self.closing:
            return
        if not task.live:
            if not task.tidy:
                await self._tidy(task)
            return
        await self._take_back(task, task.round - 1)
        here = (task_id, str(task.round))
        await self._hand_on(task)
        sets = [(*here, state) for state in (RankState.COMPLETED, RankState.DEAD)]
        completed, dead = await self.store.counts(Rank, "task", sets)
        if completed and task.order.straggler_seconds is not None and task.cut_at is None:
            await self._start_cut(task)
            task = await self.store.find(FarmTask, task_id) or task
        match machine.verdict(task, completed, dead, self.clock()):
            case Verdict.FAIL:
                await self._fail(task)
            case Verdict.CLOSE if task.paused_at is None:  # what is paused does not move
                self.closing.add(task_id)
                self.aside.spawn(self._close(task))

    async def _take_back(self, task: FarmTask, round_: int) -> None:
        """The ranks of an earlier round that somebody still holds."""
        for rank_id in await self.store.ids(Rank, "task", task.task_id, str(round_), RankState.HELD):
            await self._take(rank_id, "the round went on without it", late=None)

    async def _hand_on(self, task: FarmTask) -> None:
        for state in machine.ENDED:
            for rank_id in await self.store.ids(Rank, "task", task.task_id, str(task.round), state):

                def plan(now: FarmTask | None, rank: Rank | None) -> list[Decided] | None:
                    if now is None or rank is None or not now.live or now.round != rank.round:
                        return None
                    decided = machine.fates(now, [rank])
                    if decided.dropped:
                        return [(now, None), (decided.dropped[0], None)]
                    if not decided.reopened:
                        return None
                    open_ranks = tuple(sorted({*now.open_ranks, rank.rank}))
                    return [(now.model_copy(update={"open_ranks": open_ranks}), None), (decided.reopened[0], None)]

                await decide(self.store, [(FarmTask, task.task_id), (Rank, rank_id)], plan)

    async def _start_cut(self, task: FarmTask) -> None:
        here = (task.task_id, str(task.round), RankState.COMPLETED)
        ids = await self.store.ids(Rank, "task", *here, limit=1)
        first = await self.store.find(Rank, ids[0]) if ids else None
        at = first.ended_at if first else None
        if at is not None:
            same = task.round
            await self.store.change(
                FarmTask, task.task_id, lambda now: machine.cut_from(now, at) if now.round == same else now
            )

    async def _fail(self, task: FarmTask) -> None:
        here = (task.task_id, str(task.round), RankState.DEAD)
        [rank] = await self.store.many(Rank, await self.store.ids(Rank, "task", *here, limit=1))
        error = f"rank {rank.rank} has no tries left: {rank.error}"

        def plan(now: FarmTask | None) -> list[Decided] | None:
            if now is None or not now.live or now.round != task.round:
                return None
            after = machine.advance(now, TaskEvent.FAIL, self.clock(), error=error)
            return [(after, events.of_task(after, after.updated_at, error=error))]

        await decide(self.store, [(FarmTask, task.task_id)], plan)

    async def _tidy(self, task: FarmTask) -> None:
        """Take back what clients hold of a task that has ended; remove one that was deleted."""
        ids = await self.store.ids(Rank, "task", task.task_id)
        for start in range(0, len(ids), READ):
            for rank in await self.store.many(Rank, ids[start : start + READ]):
                if rank.state is RankState.HELD:
                    await self._take(rank.rank_id, "", late=None)
        if not task.deleted:
            await self.store.change(FarmTask, task.task_id, lambda now: now.model_copy(update={"tidy": True}))
            return
        for start in range(0, len(ids), READ):
            found = await self.store.load_many(Rank, ids[start : start + READ])
            if found:
                await self.store.commit(*(Write(rank, None, version) for rank, version in found))
        if await self.store.count(Rank, "task", task.task_id) == 0:
            await asyncio.to_thread(self.files.forget, task.task_id)
            record, version = await self.store.load(FarmTask, task.task_id)
            if record is not None:
                await self.store.commit(Write(record, None, version))

    # ---- the end of a round

    async def _close(self, task: FarmTask) -> None:
        """Average what there is, and begin the next round in one commit. Beside the loop: it may take minutes."""
        try:
            await insist(lambda: self._closed(task))
        except VillageError:  # too many at once
            log.exception("round %d of %s could not be ended", task.round, task.task_id)
        finally:
            self.closing.discard(task.task_id)
        # What happened to the task meanwhile was passed over.
        await insist(lambda: self._settle(task.task_id))

    async def _closed(self, task: FarmTask) -> None:
        ids = await self.store.ids(Rank, "task", task.task_id, str(task.round), RankState.COMPLETED)
        ranks = [r for n in range(0, len(ids), READ) for r in await self.store.many(Rank, ids[n : n + READ])]
        shares = [found for rank in ranks if (found := share(self.files, rank)) is not None]
        averaged = Averaged((), None, {})
        error = ""
        if shares:
            try:
                averaged = await asyncio.to_thread(self.files.averaged, task, shares)
            except (OSError, ValueError) as failure:  # a full disk, a model that is gone
                log.exception("round %d of %s could not be averaged", task.round, task.task_id)
                error = f"round {task.round} could not be averaged: {type(failure).__name__}"
        at = self.clock()
        ended = Round(
            round=task.round, completed=len(ranks), left_out=task.order.n_clients - len(ranks),
            samples=averaged.samples, aggregated=bool(averaged.ranks), refused=averaged.refused, ended_at=at,
        )  # fmt: skip
        metrics = machine.mean_metrics(ranks)

        def plan(now: FarmTask | None, *refused: Rank | None) -> list[Decided] | None:
            if now is None or not now.live or now.round != task.round or now.paused_at is not None:
                return None  # cancelled, or paused, or another keeper was faster
            after = machine.advance(now, TaskEvent.FAIL, at, error=error) if error else machine.closed(
                now, ended, metrics, at
            )  # fmt: skip
            kind = "farm.round_completed" if after.live else ""
            told = events.of_task(after, at, kind, ended=ended.model_dump(mode="json"), aggregated=ended.aggregated)
            return [(after, told), *((marked(rank, averaged), None) for rank in refused)]

        wanted = [(Rank, rank.rank_id) for rank in ranks if rank.rank in averaged.refused]
        decided = await decide(self.store, [(FarmTask, task.task_id), *wanted], plan)
        if decided is not None:
            self.rounds += 1
            await asyncio.to_thread(self.files.sweep, decided[0])


def marked(rank: Rank | None, averaged: Averaged) -> Rank | None:
    """The rank, with why its checkpoint is not in the average."""
    return rank.model_copy(update={"refused": averaged.refused[rank.rank]}) if rank is not None else None


async def keep_farm(store: Store, settings: Settings) -> None:
    """The loop that the village runs."""
    lease = timedelta(seconds=settings.farm_lease_seconds)
    keeper = FarmKeeper(store, Files(settings.home / FOLDER), Trust(store), lease)
    try:
        await keep(keeper)
    finally:
        keeper.aside.cancel()
