"""Trust use cases: what an agent has earned, why, and a human's correction; and the loop that keeps the ledger."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import dropwhile

from cluster import tracing
from cluster.clock import Clock, utc_now
from cluster.errors import Conflict, Invalid
from cluster.events import Event
from cluster.events.cursor import forget_what_all_have_read, keep_place, place_of
from cluster.events.model import START, order
from cluster.identity.model import Principal
from cluster.presence import BEAT_SECONDS, beat
from cluster.store import Page, Store, Write
from cluster.tasks.events import OUTCOMES
from cluster.trust import ledger, score
from cluster.trust.explain import Explanation, Sum
from cluster.trust.ledger import Chain, Standing, TrustRecord
from cluster.trust.replay import Replay, Verdict
from cluster.trust.score import TrustEvent
from cluster.workers.model import Agent

RACES = 100
PAGE = 500
READ_AT_ONCE = 2000  # entries of the stream, of which only those below are parsed
AT_ONCE = 500  # lines of one commit
FARM = frozenset({"farm.rank_completed", "farm.rank_failed", "farm.rank_timeout"})
READ = OUTCOMES | FARM | {"task.disagreed"}
HAPPENED = {
    "COMPLETED": TrustEvent.COMPLETED, "FAILED": TrustEvent.FAILED, "TIMEOUT": TrustEvent.TIMEOUT,
    "DISAGREED": TrustEvent.DISAGREED,
}  # fmt: skip


class Trust:
    """The standing of agents."""

    def __init__(self, store: Store, clock: Clock = utc_now) -> None:
        self.store, self.clock = store, clock

    def empty(self, agent_id: str) -> Standing:
        """The standing of an agent nobody has seen at work."""
        return Standing(standing_id=agent_id, as_of=self.clock())

    async def standing(self, agent_id: str) -> Standing:
        """Where the agent stands; the prior for one without records."""
        return await self.store.find(Standing, agent_id) or self.empty(agent_id)

    async def standings(self, agent_ids: Sequence[str]) -> dict[str, Standing]:
        """`standing` for several."""
        found = {standing.standing_id: standing for standing in await self.store.many(Standing, agent_ids)}
        return {agent_id: found.get(agent_id) or self.empty(agent_id) for agent_id in agent_ids}

    async def best(self, limit: int) -> list[Standing]:
        """The highest scores. Ordered by the score at the last record: fading moves all of them toward 0.5."""
        page = await self.store.page(Standing, "score", limit=limit)
        return sorted(page.items, key=lambda standing: -standing.score(self.clock()))

    async def history(
        self, agent_id: str, *, since: datetime | None = None, until: datetime | None = None, offset: int = 0,
        limit: int = 50,
    ) -> Page[TrustRecord]:  # fmt: skip
        """The agent's records, newest first."""
        low = since.timestamp() if since else "-inf"
        high = until.timestamp() if until else "+inf"
        return await self.store.page(TrustRecord, "time", agent_id, low=low, high=high, offset=offset, limit=limit)

    async def trend(self, agent_id: str) -> str:
        """From the last 20 records."""
        page = await self.store.page(TrustRecord, "agent", agent_id, limit=20)
        return score.trend([record.after - record.before for record in page.items])

    async def adjust(self, who: Principal, agent_id: str, delta: float, reason: str) -> TrustRecord:
        """Shift the score by exactly `delta`. Raises `Invalid` where that would leave 0 to 1."""
        for _ in range(RACES):
            found, version = await self.store.load(Standing, agent_id)
            standing, at = found or self.empty(agent_id), self.clock()
            before = standing.score(at)
            if not 0.0 <= before + delta <= 1.0:
                raise Invalid(
                    "the score would leave the range 0 to 1", field="delta", trust_score=before,
                    allowed_range=[-before, 1.0 - before],
                )  # fmt: skip
            good, bad = score.adjustment(standing.evidence, delta, at)
            after, line = ledger.append(standing, TrustEvent.ADJUSTED, good, bad, reason, at, by=who.principal_id)
            if await self.store.commit(Write(found, after, version, moved(after, line)), Write(None, line)):
                return line
        raise Conflict("the agent's standing is changed by too many at once", agent_id=agent_id)

    async def verify(self, agent_id: str) -> str | None:
        """What is wrong with the agent's chain; None when it holds from the first record to the standing."""
        return (await self.prove(agent_id)).fault

    async def prove(self, agent_id: str) -> Verdict:
        """Replay the agent's ledger: each link, each sum, and the standing that comes of them."""
        replay = Replay(agent_id)
        try:
            standing, through = await self._end(agent_id)
        except ValueError:
            return Verdict(agent_id, fault="the standing cannot be read")
        async for line in self.lines(agent_id, through):
            if isinstance(line, str):
                replay.broken("a record cannot be read", line)
            if isinstance(line, str) or not replay.add(line):
                break
        return replay.against(standing)

    async def _end(self, agent_id: str) -> tuple[Standing | None, int]:
        """The standing, and how many lines belong to it. Raises ValueError for one that cannot be read."""
        # The standing first: a line that is written meanwhile is beyond it and not looked at. Both are one commit, so
        # where more lines than it knows of stand beside a standing that stays, somebody has put it back.
        while True:
            standing = await self.store.find(Standing, agent_id)
            known = standing.length if standing else 0
            there = await self.store.count(TrustRecord, "agent", agent_id)
            if there <= known:
                return standing, known
            if await self.store.find(Standing, agent_id) == standing:
                return standing, there

    async def lines(self, agent_id: str, through: int) -> AsyncIterator[TrustRecord | str]:
        """The agent's records, oldest first, up to the number `through`; the id of one that cannot be read."""
        after = 0
        while ids := await self.store.ids(TrustRecord, "agent", agent_id, high=through, offset=after, limit=PAGE):
            after += len(ids)
            for line in await self._readable(ids):
                yield line

    async def _readable(self, ids: Sequence[str]) -> list[TrustRecord | str]:
        try:
            return [*await self.store.many(TrustRecord, ids)]
        except ValueError:
            found: list[TrustRecord | str] = []
            for name in ids:
                try:
                    found += await self.store.many(TrustRecord, [name])
                except ValueError:
                    found.append(name)
            return found

    async def export(self, agent_id: str) -> AsyncIterator[TrustRecord | Standing]:
        """The agent's lines, then its standing, as they were at one moment."""
        standing, through = await self._end(agent_id)
        async for line in self.lines(agent_id, through):
            if isinstance(line, TrustRecord):
                yield line
        if standing is not None:
            yield standing

    async def agents(self) -> list[str]:
        """Everybody who has a ledger, or could: a standing that was removed is missed, too."""
        standings, agents = await self.store.ids(Standing, "score"), await self.store.ids(Agent, "list", "all")
        return sorted({*standings, *agents})

    async def explain(self, agent_id: str, as_of: datetime | None = None) -> Explanation:
        """The score as a sum over the ledger's lines; with the replay that proves them."""
        (standing, through), at = await self._end(agent_id), as_of or self.clock()
        replay, summed = Replay(agent_id), Sum(at)
        async for line in self.lines(agent_id, through):
            if isinstance(line, str):
                replay.broken("a record cannot be read", line)
                continue
            replay.add(line)
            summed.add(line)
        return summed.explanation(replay.against(standing), standing)


def moved(standing: Standing, line: TrustRecord) -> Event:
    """The event of a line of the ledger."""
    return Event(
        kind="trust.changed", subject=standing.standing_id, owner="", at=line.created_at,
        data={
            "agent_id": standing.standing_id, "trust_score": line.after, "trust_delta": line.after - line.before,
            "event_type": line.event_type, "record_id": line.trust_record_id, "mean_seconds": standing.mean_seconds,
        },
    )  # fmt: skip


def credited(standing: Standing, events: Sequence[Event]) -> tuple[Standing, list[TrustRecord]]:
    """The standing and the lines after the outcomes in `events`, in the stream's order. What is in it adds nothing."""
    new, through = list(events), standing.through
    if through:
        seen = order(through)
        new = list(dropwhile(lambda event: order(event.event_id) <= seen, new))
    chain, lines = Chain(standing), []
    for event in new:
        data, kind = event.data, HAPPENED[event.data["outcome"]]
        seconds = data.get("execution_time_seconds")
        good, bad, reason = score.weights(kind, seconds, data.get("timeout_seconds", 0.0), data.get("others", 0))
        lines.append(chain.add(kind, good, bad, reason, event.at, task_id=event.subject, seconds=seconds))
    return (chain.standing(new[-1].event_id) if new else standing), lines


@dataclass(frozen=True)
class Credit:
    """What the events of one agent come to."""

    agent_id: str
    events: Sequence[Event]


class LedgerKeeper:
    """Reads the outcomes of tasks from the stream and writes each into its agent's chain, once.

    Killed anywhere, it starts again from its cursor; what a standing has seen already adds nothing.
    """

    NAME = "ledger"

    def __init__(self, store: Store, clock: Clock = utc_now) -> None:
        self.store, self.clock = store, clock
        self.cursor = START
        self.counted = 0

    async def open(self) -> None:
        """Find the place where the last keeper stopped."""
        self.cursor = await place_of(self.store, self.NAME)

    async def step(self, wait_seconds: float = BEAT_SECONDS) -> int:
        """Read and write one batch; how many outcomes it had."""
        batch, after = await self.store.batch(self.cursor, READ, READ_AT_ONCE, wait_seconds)
        by_agent: dict[str, list[Event]] = {}
        for event in batch:
            if event.data.get("agent_id") and event.data.get("outcome") in HAPPENED:
                by_agent.setdefault(event.data["agent_id"], []).append(event)
        for group in grouped(by_agent):
            self.counted += await self._credit(group)
        self.cursor = after
        if by_agent:  # skipping what is nothing to the ledger is cheap to repeat; the next beat notes it
            await keep_place(self.store, self.NAME, self.cursor)
        return sum(len(events) for events in by_agent.values())

    async def _credit(self, group: Sequence[Credit]) -> int:
        """One commit for all of the group; agent by agent if somebody else was faster with one of them."""
        for _ in range(RACES):
            found = await self.store.read(*((Standing, credit.agent_id) for credit in group))
            writes = [self._writes(credit, *pair) for credit, pair in zip(group, found, strict=True)]
            every = [write for some in writes for write in some]
            if not every:
                return 0
            if await self.store.commit(*every):
                return sum(len(some) - 1 for some in writes if some)
            if len(group) > 1:
                return sum([await self._credit([credit]) for credit in group])
        raise Conflict("the agent's standing is changed by too many at once", agent_id=group[0].agent_id)

    def _writes(self, credit: Credit, found: Standing | None, version: str) -> list[Write]:
        """The standing's and its lines'; none where it has seen all of it."""
        events = credit.events
        first, *others = [event.origin.traceparent if event.origin else "" for event in events]
        with tracing.span("trust.credit", first, links=others, agent_id=credit.agent_id):
            standing = found or Standing(standing_id=credit.agent_id, as_of=events[0].at)
            after, lines = credited(standing, events)
            if not lines:
                return []
            # One event for the batch: what a reader wants is where the agent stands now.
            event = moved(after, lines[-1]).model_copy(update={"origin": tracing.origin()})
            return [Write(found, after, version, event), *(Write(None, line) for line in lines)]

    async def beat(self) -> None:
        """Say that the ledger is kept, and how far."""
        await keep_place(self.store, self.NAME, self.cursor)
        await forget_what_all_have_read(self.store)
        await beat(self.store, self.NAME, self.clock(), {"cursor": self.cursor, "counted": self.counted})


def grouped(by_agent: Mapping[str, Sequence[Event]]) -> Iterator[list[Credit]]:
    """All of it in commits of at most `AT_ONCE` lines."""
    group: list[Credit] = []
    lines = 0
    for agent_id, events in by_agent.items():
        for start in range(0, len(events), AT_ONCE):
            some = events[start : start + AT_ONCE]
            if lines + len(some) > AT_ONCE:
                yield group
                group, lines = [], 0
            group.append(Credit(agent_id, some))
            lines += len(some)
    if group:
        yield group
