"""Trust use cases: what an agent has earned, why, and a human's correction; and the loop that keeps the ledger."""

from collections.abc import Sequence
from datetime import datetime

from cluster import tracing
from cluster.clock import Clock, utc_now
from cluster.errors import Conflict, Invalid
from cluster.events import Event
from cluster.events.cursor import Cursor, forget_what_all_have_read
from cluster.events.model import START, order
from cluster.identity.model import Principal
from cluster.origin import within
from cluster.presence import BEAT_SECONDS, beat
from cluster.store import Page, Store, Write
from cluster.tasks.events import OUTCOMES
from cluster.trust import ledger, score
from cluster.trust.ledger import Standing, TrustRecord
from cluster.trust.score import TrustEvent

RACES = 100


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
        """What is wrong with the agent's chain; None when it holds from the first record to the standing's head."""
        # The standing first: a line that is written meanwhile is beyond it and not looked at.
        standing = await self.standing(agent_id)
        ids = await self.store.ids(TrustRecord, "agent", agent_id, high=standing.length)
        records = await self.store.many(TrustRecord, ids)
        wrong = ledger.verify(records)
        if wrong is None and (records[-1].hash if records else ledger.GENESIS) != standing.head:
            return "the chain does not end where the standing says"
        return wrong


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
    """The standing and the lines after the outcomes in `events`. An event that is in it already adds nothing."""
    lines: list[TrustRecord] = []
    for event in events:
        if standing.through and order(event.event_id) <= order(standing.through):
            continue
        kind = TrustEvent(f"task_{event.data['outcome'].lower()}")
        seconds = event.data["execution_time_seconds"]
        good, bad, reason = score.weights(kind, seconds, event.data["timeout_seconds"])
        standing, line = ledger.append(
            standing, kind, good, bad, reason, event.at, task_id=event.subject, seconds=seconds
        )
        standing = standing.model_copy(update={"through": event.event_id})
        lines.append(line)
    return standing, lines


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
        cursor = await self.store.find(Cursor, self.NAME)
        self.cursor = cursor.event_id if cursor else START

    async def step(self, wait_seconds: float = BEAT_SECONDS) -> int:
        """Read and write one batch; how many lines were written."""
        batch = await self.store.events(self.cursor, wait_seconds=wait_seconds)
        by_agent: dict[str, list[Event]] = {}
        for event in batch:
            if event.kind in OUTCOMES and event.data.get("agent_id"):
                by_agent.setdefault(event.data["agent_id"], []).append(event)
        for agent_id, events in by_agent.items():
            first, *others = [event.origin.traceparent if event.origin else "" for event in events]
            with tracing.span("trust.credit", first, links=others, agent_id=agent_id), within(tracing.origin()):
                self.counted += await self._credit(agent_id, events)
        if batch:
            self.cursor = batch[-1].event_id
        if by_agent:  # skipping what is nothing to the ledger is cheap to repeat; the next beat notes it
            await self._keep_place()
        return sum(len(events) for events in by_agent.values())

    async def _credit(self, agent_id: str, events: Sequence[Event]) -> int:
        for _ in range(RACES):
            found, version = await self.store.load(Standing, agent_id)
            standing = found or Standing(standing_id=agent_id, as_of=events[0].at)
            after, lines = credited(standing, events)
            if not lines:
                return 0
            # One event for the batch: what a reader wants is where the agent stands now.
            writes = [Write(found, after, version, moved(after, lines[-1])), *(Write(None, line) for line in lines)]
            if await self.store.commit(*writes):
                return len(lines)
        raise Conflict("the agent's standing is changed by too many at once", agent_id=agent_id)

    async def _keep_place(self) -> None:
        place = Cursor(cursor_id=self.NAME, event_id=self.cursor)
        await self.store.upsert(place, lambda _: place)

    async def beat(self) -> None:
        """Say that the ledger is kept, and how far."""
        await self._keep_place()
        await forget_what_all_have_read(self.store)
        await beat(self.store, self.NAME, self.clock(), {"cursor": self.cursor, "counted": self.counted})
