"""The clients: they connect, say how they are, ask for a task, tell how it goes and what came of it."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from cluster.clock import Clock, utc_now
from cluster.errors import Conflict, Forbidden, NotFound
from cluster.farm import events, holding
from cluster.farm.deciding import Decided, decide
from cluster.farm.machine import RankEvent
from cluster.farm.model import Client, Desk, FarmTask, Rank, RankState
from cluster.farm.protocol import Heartbeat, Progress, Replaced, Result
from cluster.identity.model import Principal
from cluster.store import Page, Store
from cluster.trust.service import Trust

ACTIVE = timedelta(seconds=60)  # without a sign of life for longer a client is inactive
MAX_PER_OWNER = 1000
REPORTED = {"completed": RankEvent.COMPLETE, "failed": RankEvent.FAIL, "stopped": RankEvent.RELEASE}
READ = 500


@dataclass(frozen=True)
class Held:
    """A client, and what it holds: None, None for nothing."""

    client: Client
    rank: Rank | None = None
    task: FarmTask | None = None


class Fleet:
    """Client use cases. Raises `Replaced` for what is said over a connection that is no longer the client's."""

    def __init__(self, store: Store, trust: Trust, lease: timedelta, clock: Clock = utc_now) -> None:
        self.store, self.trust, self.lease, self.clock = store, trust, lease, clock

    # ---- connections

    async def connect(self, who: Principal, client_id: str, desk: str, connection: str) -> Client:
        """The client has a new connection, whatever it had before. Raises `Forbidden`, `Conflict`."""
        known = await self.store.find(Client, client_id)
        if known is None and await self.store.count(Client, "list", "owner", who.owner) >= MAX_PER_OWNER:
            raise Conflict(f"an owner may have {MAX_PER_OWNER} clients", limit=MAX_PER_OWNER)

        def plan(client: Client | None) -> list[Decided]:
            at = self.clock()
            if client is not None and client.owner != who.owner:
                raise Forbidden("this Client-ID belongs to somebody else", client_id=client_id)
            known = client or Client(client_id=client_id, owner=who.owner, created_at=at, last_seen=at)
            # A lease goes on by the client's own word, not because there is a connection.
            update = {"desk": desk, "connection": connection, "waiting_since": None, "last_seen": at}
            after = known.model_copy(update=update)
            kind = "farm.client_connected" if client else "farm.client_registered"
            return [(after, events.of_client(after, at, kind=kind))]

        [client] = await self._decided([(Client, client_id)], plan)
        return client

    async def disconnect(self, client_id: str, connection: str) -> None:
        """The connection has ended. What the client holds stays its own until the lease is over."""

        def plan(client: Client | None) -> list[Decided] | None:
            if client is None or client.connection != connection:
                return None
            after = client.model_copy(update={"desk": "", "connection": "", "waiting_since": None})
            return [(after, events.of_client(after, self.clock(), kind="farm.client_disconnected"))]

        await decide(self.store, [(Client, client_id)], plan)

    async def sit(self, desk_id: str) -> None:
        """The process of these connections lives."""
        now = Desk(desk_id=desk_id, at=self.clock())
        await self.store.upsert(now, lambda _: now)

    async def leave(self, desk_id: str) -> None:
        """The process has no connections any more."""
        with suppress(NotFound):
            await self.store.delete(Desk, desk_id)

    # ---- what clients say

    async def heartbeat(self, client_id: str, connection: str, said: Heartbeat) -> Held:
        """The machine as it is; extends the lease."""

        def plan(client: Client | None) -> list[Decided]:
            mine = of_connection(client, connection)
            update = {"system": said.system_info, "resources": said.resources or mine.resources}
            return [(holding.heard(mine, self.clock(), self.lease, **update), None)]

        [client] = await self._decided([(Client, client_id)], plan)
        return Held(client)

    async def ask(self, client_id: str, connection: str) -> Held:
        """Wants a task: what it holds, or it waits. Asking again changes nothing."""
        while True:
            holds = of_connection(await self.store.find(Client, client_id), connection).holds

            def plan(
                client: Client | None, rank: Rank | None, task: FarmTask | None, holds: str = holds
            ) -> list[Decided] | None:
                mine, at = of_connection(client, connection), self.clock()
                if mine.holds != holds:  # it was given something this moment
                    return None
                if holding.belongs(mine, rank, task):
                    return [(holding.heard(mine, at, self.lease), None), (rank, None), (task, None)]
                cut: Decided = (rank, None)
                if rank is not None and rank.state is RankState.HELD and holds:
                    after, free, told = holding.taken(task, rank, mine, at, "")
                    cut, mine = (after, told), free or mine
                if mine.waiting_since:
                    return [(mine, None), cut, (task, None)]
                after = mine.model_copy(update={"holds": "", "lease_until": None, "waiting_since": at, "last_seen": at})
                return [(after, events.of_client(after, at, kind="farm.client_waiting")), cut, (task, None)]

            wanted = [(Client, client_id), (Rank, holds), (FarmTask, holds.split(".")[0])]
            decided = await decide(self.store, wanted, plan)
            if decided is not None:
                client, rank, task = decided
                return Held(client, rank, task) if client.holds else Held(client)

    async def progress(self, client_id: str, connection: str, said: Progress) -> str:
        """Extends the lease. Empty, or why the client should not be working on this."""
        client = of_connection(await self.store.find(Client, client_id), connection)
        if not _about(client, said.task_id):
            return holding.why_not(client, said.task_id, said.round, said.attempt)

        def plan(client: Client | None, rank: Rank | None, task: FarmTask | None) -> list[Decided] | None:
            mine, at = of_connection(client, connection), self.clock()
            if not holding.belongs(mine, rank, task) or not rank or not _meant(rank, said.round, said.attempt):
                return None
            metrics = said.metrics or rank.metrics
            after = rank.model_copy(update={"progress": said.progress, "metrics": metrics})
            told = events.of_rank(after, at, kind="farm.progress", progress=after.progress, metrics=metrics)
            return [(holding.heard(mine, at, self.lease), None), (after, told), (task, None)]

        wanted = [(Client, client_id), (Rank, client.holds), (FarmTask, said.task_id)]
        if await decide(self.store, wanted, plan) is not None:
            return ""
        return holding.why_not(client, said.task_id, said.round, said.attempt).replace("not_assigned", "stale")

    async def result(self, client_id: str, connection: str, said: Result) -> str:
        """Ends the work on a rank, once. Empty where it counts, else why it does not."""
        client = of_connection(await self.store.find(Client, client_id), connection)
        if not _about(client, said.task_id):
            return holding.why_not(client, said.task_id, said.round, said.attempt)
        event = REPORTED[said.status]
        update: dict[str, Any] = {"checkpoint_path": said.checkpoint_path or "", "samples": said.samples}
        if event is not RankEvent.COMPLETE:
            update["error"] = (said.error or f"the client says {said.status}")[:2000]

        def plan(client: Client | None, rank: Rank | None, task: FarmTask | None) -> list[Decided] | None:
            mine, at = of_connection(client, connection), self.clock()
            if not holding.belongs(mine, rank, task) or not rank or not _meant(rank, said.round, said.attempt):
                return None
            more = {"metrics": rank.metrics | said.metrics}
            more |= {"progress": 100.0} if event is RankEvent.COMPLETE else {}
            mine = holding.heard(mine, at, self.lease)
            after, free, told = holding.ended(task, rank, mine, event, at, **(update | more))
            return [(free, None), (after, told), (task, None)]

        wanted = [(Client, client_id), (Rank, client.holds), (FarmTask, said.task_id)]
        if await decide(self.store, wanted, plan) is not None:
            return ""
        now = await self.store.find(Client, client_id) or client
        return holding.why_not(now, said.task_id, said.round, said.attempt).replace("not_assigned", "stale")

    async def give_back(self, client_id: str, rank: str, connection: str, attempt: int) -> None:
        """A rank that was handed out for a connection which has ended before its client heard of it."""

        def plan(client: Client | None, held: Rank | None, task: FarmTask | None) -> list[Decided] | None:
            if client is None or client.connection not in ("", connection) or client.holds != rank:
                return None
            if held is None or held.attempt != attempt or not holding.belongs(client, held, task):
                return None
            event, at = RankEvent.RELEASE, self.clock()
            after, free, told = holding.ended(task, held, client, event, at, error="not taken")
            return [(free, None), (after, told), (task, None)]

        await decide(self.store, [(Client, client_id), (Rank, rank), (FarmTask, rank.split(".")[0])], plan)

    # ---- looking

    async def held(self, client: Client) -> Held:
        """What the client holds."""
        if not client.holds:
            return Held(client)
        wanted = ((Rank, client.holds), (FarmTask, client.holds.split(".")[0]))
        (rank, _), (task, _) = await self.store.read(*wanted)
        return Held(client, rank, task)

    async def get(self, who: Principal, client_id: str) -> Held:
        """Raises `NotFound`."""
        client = await self.store.find(Client, client_id)
        if client is None or not who.sees(client.owner):
            raise NotFound(f"no client {client_id}", client_id=client_id)
        return await self.held(client)

    async def score(self, client: Client) -> float:
        """How far it is trusted."""
        return (await self.trust.standing(client.agent_id)).score(self.clock())

    async def page(self, who: Principal, active: bool | None, offset: int, limit: int) -> Page[Client]:
        """Newest first; those heard of lately first where only they, or only the others, are wanted."""
        whose = _whose(who)
        if active is None:
            return await self.store.page(Client, "list", *whose, offset=offset, limit=limit)
        line = (self.clock() - ACTIVE).timestamp()
        low, high = (line, "+inf") if active else ("-inf", f"({line!r}")
        return await self.store.page(Client, "seen", *whose, low=low, high=high, offset=offset, limit=limit)

    async def active(self, who: Principal) -> list[Client]:
        """All of them that were heard of lately."""
        line = (self.clock() - ACTIVE).timestamp()
        ids = await self.store.ids(Client, "seen", *_whose(who), low=line)
        return [c for n in range(0, len(ids), READ) for c in await self.store.many(Client, ids[n : n + READ])]

    async def total(self, who: Principal) -> int:
        """How many there are."""
        return await self.store.count(Client, "list", *_whose(who))

    def is_active(self, client: Client) -> bool:
        """Whether it was heard of lately."""
        return self.clock() - client.last_seen <= ACTIVE

    async def _decided(self, wanted: list[tuple[type, str]], plan: Any) -> list[Any]:
        found = await decide(self.store, wanted, plan)
        assert found is not None
        return found


def _whose(who: Principal) -> tuple[str, ...]:
    return ("all",) if who.is_admin else ("owner", who.owner)


def of_connection(client: Client | None, connection: str) -> Client:
    """The client, if the connection is its own. Raises `Replaced`."""
    if client is None or client.connection != connection:
        raise Replaced("another connection of this client has replaced this one")
    return client


def _about(client: Client, task_id: str) -> bool:
    return bool(client.holds) and client.holds.split(".")[0] == task_id


def _meant(rank: Rank, round_: int | None, attempt: int | None) -> bool:
    return round_ in (None, rank.round) and attempt in (None, rank.attempt)
