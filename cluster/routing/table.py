"""What the router knows of agents: who could take a task now. Plain state, fed by events; no store, no clock."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cluster.routing.strategies import Candidate
from cluster.trust.ledger import Standing
from cluster.workers.model import Agent

FIRST_REST_SECONDS = 1.0
MAX_REST_SECONDS = 60.0


@dataclass
class Entry:
    """One agent."""

    agent: Agent
    standing: Standing
    held: set[str] = field(
        default_factory=set
    )  # the attempts it holds: a task that comes back to it is another attempt
    last_turn: int = 0
    silent: int = 0  # deliveries in a row without an answer
    rests_until: datetime | None = None

    def candidate(self, at: datetime) -> Candidate:
        """As the strategies see it."""
        return Candidate(
            self.agent.agent_id, self.standing.score(at), len(self.held), self.agent.max_concurrent_tasks,
            self.standing.mean_seconds, self.last_turn,
        )  # fmt: skip


class Table:
    """Agents by id and by capability."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.by_tag: dict[str, set[str]] = {}
        self.turn = 0

    def put(self, agent: Agent, standing: Standing) -> None:
        """Learn of an agent, or of its change; what it holds stays."""
        known = self.entries.get(agent.agent_id)
        if known:
            for tag in known.agent.tags:
                self.by_tag[tag].discard(agent.agent_id)
            known.agent, known.standing = agent, standing
        else:
            self.entries[agent.agent_id] = Entry(agent, standing)
        for tag in agent.tags:
            self.by_tag.setdefault(tag, set()).add(agent.agent_id)

    def free(self, capability: str, at: datetime) -> list[Entry]:
        """Active agents with the capability, with room, not resting."""
        entries = (self.entries[agent_id] for agent_id in self.by_tag.get(capability, ()))
        return [
            entry for entry in entries
            if entry.agent.status == "active" and len(entry.held) < entry.agent.max_concurrent_tasks
            and (entry.rests_until is None or entry.rests_until <= at)
        ]  # fmt: skip

    def hold(self, agent_id: str, attempt_id: str) -> None:
        """The agent has the task."""
        self.turn += 1
        entry = self.entries[agent_id]
        entry.held.add(attempt_id)
        entry.last_turn = self.turn

    def drop(self, agent_id: str, attempt_id: str) -> Iterable[str]:
        """The agent no longer has the task; returns the capabilities that have room now."""
        entry = self.entries.get(agent_id)
        if entry is None or attempt_id not in entry.held:
            return ()
        entry.held.discard(attempt_id)
        return entry.agent.tags

    def answered(self, agent_id: str) -> None:
        """The agent is there."""
        if entry := self.entries.get(agent_id):
            entry.silent, entry.rests_until = 0, None

    def unanswered(self, agent_id: str, at: datetime) -> datetime | None:
        """The agent is not there: it rests, each time twice as long. Returns until when."""
        entry = self.entries.get(agent_id)
        if entry is None:
            return None
        seconds = min(FIRST_REST_SECONDS * 2 ** min(entry.silent, 16), MAX_REST_SECONDS)
        entry.silent += 1
        entry.rests_until = at + timedelta(seconds=seconds)
        return entry.rests_until

    def rested(self, at: datetime) -> Iterable[str]:
        """Capabilities of agents whose rest is over since the last call."""
        for entry in self.entries.values():
            if entry.rests_until is not None and entry.rests_until <= at:
                entry.rests_until = None
                yield from entry.agent.tags
