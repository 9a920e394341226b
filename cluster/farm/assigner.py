"""Ranks to clients: reads who waits and what there is to do, and commits what `matching` says, pair by pair."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta

from cluster.clock import Clock
from cluster.errors import NotFound
from cluster.farm import events, holding, machine
from cluster.farm.deciding import Decided, decide
from cluster.farm.matching import Waiting, Work, match
from cluster.farm.model import Client, Desk, FarmTask, Rank, RankState, TaskState, rank_id
from cluster.presence import STALE_SECONDS
from cluster.store import Store
from cluster.trust.service import Trust

AT_ONCE = 500  # clients that are looked at in one round, those that wait longest
TASKS = 200  # tasks read at once
EVERY = timedelta(seconds=2)  # what no event tells of: resources that have become free, a process that died
BADLY = frozenset({RankState.FAILED, RankState.LOST})


class Assigner:
    """The keeper's part that hands out."""

    def __init__(self, store: Store, trust: Trust, lease: timedelta, clock: Clock) -> None:
        self.store, self.trust, self.lease, self.clock = store, trust, lease, clock
        self.looked: datetime | None = None
        self.handed_out = 0

    def is_due(self) -> bool:
        """Whether it is time to look without an event."""
        return self.looked is None or self.clock() - self.looked >= EVERY

    async def match(self) -> int:
        """Hand out what can be handed out; how many ranks that was."""
        self.looked = self.clock()
        clients = await self._waiting()
        done = 0
        offset = 0
        while clients:
            ids = await self.store.ids(FarmTask, "work", offset=offset, limit=TASKS)
            tasks = [task for task in await self.store.many(FarmTask, ids) if task.has_work]
            failed = failures(clients.values())
            offered = [work(task, failed) for task in tasks]
            for client_id, task_id in match(offered, await self._ranked(clients)):
                del clients[client_id]
                done += await self._hand_out(client_id, task_id)
            if len(ids) < TASKS:
                break
            offset += TASKS
        self.handed_out += done
        return done

    async def _waiting(self) -> dict[str, Client]:
        """Those whose connection is in a process that lives."""
        ids = await self.store.ids(Client, "waiting", limit=AT_ONCE)
        if not ids:
            return {}
        line = (self.clock() - timedelta(seconds=STALE_SECONDS)).timestamp()
        alive = set(await self.store.ids(Desk, "at", low=line))
        found = await self.store.many(Client, ids)
        for client in found:
            if client.desk not in alive:
                await self._forget(client)
        return {client.client_id: client for client in found if client.desk in alive and client.waiting_since}

    async def _forget(self, client: Client) -> None:
        """Its process died without a word: it waits no more, and comes back over another one."""
        gone = client.connection

        def step(now: Client) -> Client:
            return now.model_copy(update={"waiting_since": None}) if now.connection == gone else now

        with suppress(NotFound):
            await self.store.change(Client, client.client_id, step)

    async def _ranked(self, clients: dict[str, Client]) -> list[Waiting]:
        now = self.clock()
        standings = await self.trust.standings([client.agent_id for client in clients.values()])
        return [
            Waiting(
                client.client_id, client.resources, standings[client.agent_id].score(now),
                client.waiting_since.timestamp() if client.waiting_since else 0.0,
            )
            for client in clients.values()
        ]  # fmt: skip

    async def _hand_out(self, client_id: str, task_id: str) -> bool:
        task = await self.store.find(FarmTask, task_id)
        number = machine.next_rank(task) if task else None
        if task is None or number is None:
            return False
        wanted_rank, round_ = rank_id(task_id, task.round, number), task.round

        def plan(now: FarmTask | None, rank: Rank | None, client: Client | None) -> list[Decided] | None:
            at = self.clock()
            if now is None or client is None or now.round != round_ or machine.next_rank(now) != number:
                return None  # another was faster; the next look sees what is left
            if not client.waiting_since or client.holds:
                return None
            given = again(rank, client, now, at) if rank else first(wanted_rank, number, client, now, at)
            given = given.model_copy(update={"deadline": machine.deadline(now, given, at)})
            told = events.of_rank(
                given, at, kind="farm.rank_assigned", connection=client.connection, desk=client.desk
            )  # fmt: skip
            after = machine.handed_out(now, number, at)
            began = now.state is TaskState.PENDING
            return [
                (after, events.of_task(after, at, kind="farm.task_started") if began else None),
                (given, told),
                (holding.given(client, given, at, self.lease), None),
            ]

        wanted = [(FarmTask, task_id), (Rank, wanted_rank), (Client, client_id)]
        return await decide(self.store, wanted, plan) is not None


def first(id_: str, number: int, client: Client, task: FarmTask, at: datetime) -> Rank:
    """A rank that nobody has had in this round."""
    return Rank(
        rank_id=id_, task_id=task.task_id, owner=task.owner, round=task.round, rank=number, client_id=client.client_id,
        assigned_at=at, deadline=at, paused_before=machine.paused_seconds(task, at),
    )  # fmt: skip


def again(rank: Rank, client: Client, task: FarmTask, at: datetime) -> Rank:
    """A rank that somebody had before: the attempt is another, and begins at nothing."""
    return machine.move(
        rank, machine.RankEvent.ASSIGN, client_id=client.client_id, attempt=rank.attempt + 1, progress=0.0, metrics={},
        samples=None, upload="", upload_bytes=0, refused="", error="", assigned_at=at, ended_at=None,
        paused_before=machine.paused_seconds(task, at),
    )  # fmt: skip


def work(task: FarmTask, failed: Mapping[tuple[str, int], set[str]]) -> Work:
    """What there is to hand out of a task."""
    left = task.order.n_clients - task.handed + len(task.open_ranks)
    avoid = frozenset(failed.get((task.task_id, task.round), ()))
    return Work(task.task_id, left, task.order.requirements, avoid)


def failures(clients: Iterable[Client]) -> dict[tuple[str, int], set[str]]:
    """Who has failed lately, by task and round."""
    found: dict[tuple[str, int], set[str]] = {}
    for client in clients:
        for past in client.recent:
            if past.state in BADLY:
                found.setdefault((past.task_id, past.round), set()).add(client.client_id)
    return found
