"""Waiting until all has come to an end, and gathering the history then."""

import asyncio
import time
from pathlib import Path

from cluster.errors import Unavailable
from cluster.events import Event
from cluster.events.model import START
from cluster.store import Record, Store
from cluster.store.check import differences, everything
from cluster.tasks.model import FINAL, Task
from cluster.torture.history import History
from cluster.torture.notes import read
from cluster.torture.plan import Plan
from cluster.trust.ledger import Standing, TrustRecord
from cluster.trust.service import READ, Trust
from cluster.webhooks import catalogue
from cluster.webhooks.model import Webhook
from cluster.workers.model import Agent
from cluster.workflows.chains.model import Chain, ChainState
from cluster.workflows.schedules.model import Firing, Schedule

LOOK_SECONDS = 0.2
CHECKED: tuple[type[Record], ...] = (
    Task, Agent, Chain, Schedule, Firing, Standing, TrustRecord, Webhook
)  # fmt: skip


async def stream(store: Store, after: str = START) -> list[Event]:
    """All events from there on."""
    found: list[Event] = []
    while batch := await store.events(after, limit=5000):
        found += batch
        after = batch[-1].event_id
    return found


class Waiting:
    """Looks whether anything is still to come."""

    def __init__(self, store: Store, home: Path, hook_since: str) -> None:
        self.store, self.home, self.hook_since = store, home, hook_since

    async def settled(self, within_seconds: float) -> str:
        """What had not ended within that time; empty once everything has."""
        deadline = time.monotonic() + within_seconds
        while True:
            try:
                left = await self._left()
            except Unavailable:
                left = "the store does not answer"
            if not left or time.monotonic() > deadline:
                return left
            await asyncio.sleep(LOOK_SECONDS)

    async def _left(self) -> str:
        states = [state for state in Task.model_fields["state"].annotation if state not in FINAL]  # type: ignore[union-attr]
        counts = await self.store.counts(Task, "list", [("all", state) for state in states])
        if sum(counts):
            return f"{sum(counts)} tasks have not ended"
        if running := await self.store.count(Chain, "list", "all", ChainState.RUNNING):
            return f"{running} chains have not ended"
        notes = read(self.home / "notes")
        fired = {(f.schedule_id, f.scheduled_for.timestamp()) for f in await self._firings() if f.scheduled_for}
        scheduled = {(note["schedule_id"], note["due"]) for note in notes if note["what"] == "scheduled"}
        if scheduled - fired:
            return f"{len(scheduled - fired)} schedules have not fired"
        events = await stream(self.store)
        outcomes = sum(event.kind in READ and bool(event.data.get("agent_id")) for event in events)
        lines = sum(standing.length for standing in await self._standings())
        if lines < outcomes:
            return f"{outcomes - lines} outcomes are not in the trust ledger"
        received = {note["event_id"] for note in notes if note["what"] == "received"}
        wanted = {event.event_id for event in events if event.kind in catalogue.NAMES}
        wanted -= {event.event_id for event in await self._before_hook()}
        return f"{len(wanted - received)} webhook events have not come" if wanted - received else ""

    async def _firings(self) -> list[Firing]:
        return [record for record in await everything(self.store, Firing) if isinstance(record, Firing)]

    async def _standings(self) -> list[Standing]:
        return [record for record in await everything(self.store, Standing) if isinstance(record, Standing)]

    async def _before_hook(self) -> list[Event]:
        found = await self.store.events(START, limit=1000)
        ids = [event.event_id for event in found]
        return found[: ids.index(self.hook_since) + 1] if self.hook_since in ids else []


async def collected(plan: Plan, store: Store, home: Path) -> History:
    """The history. Nobody may write any more."""
    records = {kind: await everything(store, kind) for kind in CHECKED}
    agents = [agent.name for agent in plan.agents]
    trust = Trust(store)
    return History(
        plan=plan.as_json(), events=await stream(store), tasks=records[Task],  # type: ignore[arg-type]
        rooms={agent.name: agent.room for agent in plan.agents},
        held={agent_id: await store.ids(Task, "held", agent_id) for agent_id in agents},
        notes=read(home / "notes"), lines=records[TrustRecord],  # type: ignore[arg-type]
        verified={agent_id: await trust.verify(agent_id) or "" for agent_id in agents},
        chains=records[Chain], schedules=records[Schedule], firings=records[Firing],  # type: ignore[arg-type]
        errors=unexpected(home / "logs"),
        differences=[text for kind in CHECKED for text in await differences(store, kind, records[kind])],
    )  # fmt: skip


def unexpected(folder: Path) -> list[str]:
    """Lines of logs at the level of an error, and tracebacks."""
    return [
        f"{file.stem}: {line[:2000]}"
        for file in sorted(folder.glob("*.log"))
        for line in file.read_text(errors="replace").splitlines()
        if '"level":"error"' in line or "Traceback" in line
    ]
