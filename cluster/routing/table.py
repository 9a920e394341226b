"""What the router knows of agents: who could take a task now. Plain state, fed by events; no store, no clock.

An agent is offered tasks (push), or offers room itself (pull): an offer names an inbox, how many tasks that may hold,
and until when it counts. For each capability and strategy that is asked for there is a heap of agents in the strategy's
order; every change of an agent pushes it anew, and what has become stale is dropped when it comes up. So a choice costs
the same with ten agents and with a thousand.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cluster.routing.strategies import CATALOGUE, Candidate, Key
from cluster.tasks.model import Task
from cluster.trust.ledger import Standing
from cluster.workers.model import Agent

FIRST_REST_SECONDS = 1.0
MAX_REST_SECONDS = 60.0


@dataclass
class Offer:
    """Room in an inbox of an agent that pulls."""

    credit: int  # tasks that may be held there, those that are there already included
    until: datetime


@dataclass
class Entry:
    """One agent."""

    agent: Agent
    standing: Standing
    held: dict[str, str] = field(default_factory=dict)  # attempt (a task that comes back is another one) to its inbox
    used: dict[str, int] = field(default_factory=dict)  # how many of them each inbox has
    alone: set[str] = field(default_factory=set)  # inboxes that hold a suspect
    offers: dict[str, Offer] = field(default_factory=dict)
    last_turn: int = 0
    silent: int = 0  # deliveries in a row without an answer
    rests_until: datetime | None = None
    version: int = 0
    trust: float = 0.5  # fades by itself so slowly that it is only now and then looked at anew
    counted: int = 0  # its room, as the sums by tag have it

    @property
    def pulls(self) -> bool:
        """Whether it takes its tasks itself."""
        return self.agent.pulls

    def candidate(self) -> Candidate:
        """As the strategies see it."""
        return Candidate(
            self.agent.agent_id, self.trust, len(self.held), self.agent.max_concurrent_tasks,
            self.standing.mean_seconds, self.last_turn,
        )  # fmt: skip

    def inboxes(self) -> dict[str, int]:
        """The room in each inbox on offer."""
        return {
            inbox: 0 if inbox in self.alone else max(0, offer.credit - self.used.get(inbox, 0))
            for inbox, offer in self.offers.items()
        }

    @property
    def room(self) -> int:
        """How many tasks it can be given."""
        if self.agent.status != "active" or self.rests_until is not None:
            return 0
        room = max(0, self.agent.max_concurrent_tasks - len(self.held))
        return min(room, sum(self.inboxes().values())) if self.pulls and room else room

    def inbox_for(self, task: Task) -> str | None:
        """The inbox with the most room; a suspect needs one that is empty. "" for an agent that is pushed to."""
        if not self.pulls:
            return ""
        rooms = self.inboxes()
        if task.suspect:
            rooms = {inbox: room for inbox, room in rooms.items() if inbox not in self.used}
        best = max(rooms, key=lambda inbox: rooms[inbox], default=None)
        return best if best is not None and rooms[best] > 0 else None


class Table:
    """Agents by id and by capability."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.by_tag: dict[str, set[str]] = {}
        self.rooms: dict[str, int] = {}  # by tag
        self.heaps: dict[tuple[str, str], list[tuple[Key, str, int]]] = {}  # by tag and strategy
        self.turn = 0
        self.resting: set[str] = set()
        self.offering: set[str] = set()

    def put(self, agent: Agent, standing: Standing, at: datetime) -> None:
        """Learn of an agent, or of its change; what it holds stays."""
        known = self.entries.get(agent.agent_id)
        if known:
            self._count(known, 0)
            for tag in known.agent.tags:
                self.by_tag[tag].discard(agent.agent_id)
            known.agent, known.standing = agent, standing
        else:
            known = self.entries[agent.agent_id] = Entry(agent, standing)
        for tag in agent.tags:
            self.by_tag.setdefault(tag, set()).add(agent.agent_id)
            for strategy in CATALOGUE:
                self.heaps.pop((tag, strategy), None)  # made anew when they are asked for
        known.trust = standing.score(at)
        self._changed(known, at)

    def _count(self, entry: Entry, room: int) -> None:
        if room != entry.counted:
            for tag in entry.agent.tags:
                self.rooms[tag] = self.rooms.get(tag, 0) + room - entry.counted
            entry.counted = room

    def _changed(self, entry: Entry, at: datetime) -> None:
        entry.version += 1
        self._count(entry, entry.room)
        if entry.counted:
            for tag in entry.agent.tags:
                if len(self.by_tag[tag]) > 1:
                    for strategy in CATALOGUE:
                        if (tag, strategy) in self.heaps:
                            self._push(tag, strategy, entry, at)

    def _push(self, tag: str, strategy: str, entry: Entry, at: datetime) -> None:
        heap = self.heaps[tag, strategy]
        heapq.heappush(heap, (CATALOGUE[strategy].key(entry.candidate()), entry.agent.agent_id, entry.version))
        if len(heap) > 64 + 8 * len(self.by_tag.get(tag, ())):
            self._rank(tag, strategy, at)

    def _rank(self, tag: str, strategy: str, at: datetime) -> None:
        key = CATALOGUE[strategy].key
        entries = (self.entries[agent_id] for agent_id in self.by_tag.get(tag, ()))
        heap = [(key(e.candidate()), e.agent.agent_id, e.version) for e in entries if e.counted]
        heapq.heapify(heap)
        self.heaps[tag, strategy] = heap

    def rank_anew(self, at: datetime) -> None:
        """Trust fades while nothing happens, so now and then the orders are made anew."""
        for entry in self.entries.values():
            entry.trust = entry.standing.score(at)
        for tag, strategy in list(self.heaps):
            self._rank(tag, strategy, at)

    def room(self, capability: str) -> int:
        """How many tasks of it could be given now, at the most."""
        return self.rooms.get(capability, 0)

    def choose(self, task: Task, at: datetime) -> tuple[Entry, str] | None:
        """The agent and its inbox that the task's strategy and its own rules name; None where nobody can have it."""
        agents = self.by_tag.get(task.capability_required, ())
        if len(agents) == 1:  # as with the village's own workers: nothing to put in order
            [only] = (self.entries[agent_id] for agent_id in agents)
            inbox = only.inbox_for(task) if only.counted and allowed(task, only.agent, only.standing, at) else None
            return None if inbox is None else (only, inbox)
        place = (task.capability_required, task.routing_strategy)
        if place not in self.heaps:
            self._rank(*place, at)
        heap, passed, found = self.heaps[place], [], None
        while heap and found is None:
            top = heap[0]
            entry = self.entries.get(top[1])
            if entry is None or entry.version != top[2] or not entry.counted:
                heapq.heappop(heap)
                continue
            inbox = entry.inbox_for(task)
            if inbox is None or not allowed(task, entry.agent, entry.standing, at):
                passed.append(heapq.heappop(heap))
                continue
            found = (entry, inbox)
        for item in passed:
            heapq.heappush(heap, item)
        return found

    def hold(self, agent_id: str, task: Task, at: datetime) -> None:
        """The agent has the task, whose agent and inbox are set."""
        entry = self.entries[agent_id]
        if task.attempt_id in entry.held:
            return
        self.turn += 1
        entry.held[task.attempt_id] = task.inbox
        entry.used[task.inbox] = entry.used.get(task.inbox, 0) + 1
        if task.suspect and task.inbox:
            entry.alone.add(task.inbox)
        entry.last_turn = self.turn
        self._changed(entry, at)

    def drop(self, agent_id: str, attempt_id: str, at: datetime) -> Iterable[str]:
        """The agent no longer has the task; returns the capabilities that have room now."""
        entry = self.entries.get(agent_id)
        if entry is None or attempt_id not in entry.held:
            return ()
        inbox = entry.held.pop(attempt_id)
        entry.used[inbox] -= 1
        if not entry.used[inbox]:
            del entry.used[inbox]
            entry.alone.discard(inbox)
        self._changed(entry, at)
        return entry.agent.tags

    def offer(self, agent_id: str, inbox: str, offer: Offer, at: datetime) -> Iterable[str]:
        """Room in an inbox; returns the capabilities that have room now."""
        entry = self.entries.get(agent_id)
        if entry is None:
            return ()
        before = entry.offers.get(inbox)
        entry.offers[inbox] = offer
        self.offering.add(agent_id)
        if before is not None and before.credit == offer.credit:
            return ()  # only a longer life
        self._changed(entry, at)
        return entry.agent.tags if entry.counted else ()

    def prolong(self, until: datetime) -> None:
        """No offer runs out before then: whoever made one could not have renewed it, or could not be heard."""
        for agent_id in self.offering:
            for offer in self.entries[agent_id].offers.values():
                offer.until = max(offer.until, until)

    def withdrawn(self, at: datetime) -> list[tuple[Entry, str]]:
        """The agents and inboxes whose offers have run out since the last call."""
        gone: list[tuple[Entry, str]] = []
        for agent_id in list(self.offering):
            entry = self.entries[agent_id]
            over = [inbox for inbox, offer in entry.offers.items() if offer.until <= at]
            for inbox in over:
                del entry.offers[inbox]
            gone += [(entry, inbox) for inbox in over]
            if over:
                self._changed(entry, at)
            if not entry.offers:
                self.offering.discard(agent_id)
        return gone

    def stands(self, agent_id: str, standing: Standing, at: datetime) -> None:
        """The agent's trust has moved."""
        if entry := self.entries.get(agent_id):
            entry.standing, entry.trust = standing, standing.score(at)
            self._changed(entry, at)

    def answered(self, agent_id: str, at: datetime) -> None:
        """The agent is there."""
        entry = self.entries.get(agent_id)
        if entry and (entry.silent or entry.rests_until):
            entry.silent, entry.rests_until = 0, None
            self.resting.discard(agent_id)
            self._changed(entry, at)

    def unanswered(self, agent_id: str, at: datetime) -> datetime | None:
        """The agent is not there: it rests, each time twice as long. Returns until when.

        Deliveries that fail while it rests began before, and say nothing new.
        """
        entry = self.entries.get(agent_id)
        if entry is None:
            return None
        if entry.rests_until is not None and at < entry.rests_until:
            return entry.rests_until
        seconds = min(FIRST_REST_SECONDS * 2 ** min(entry.silent, 16), MAX_REST_SECONDS)
        entry.silent += 1
        entry.rests_until = at + timedelta(seconds=seconds)
        self.resting.add(agent_id)
        self._changed(entry, at)
        return entry.rests_until

    def rested(self, at: datetime) -> Iterable[str]:
        """Capabilities of agents whose rest is over since the last call."""
        for agent_id in list(self.resting):
            entry = self.entries[agent_id]
            if entry.rests_until is None or entry.rests_until <= at:
                entry.rests_until = None
                self.resting.discard(agent_id)
                self._changed(entry, at)
                yield from entry.agent.tags


def in_village(agent_id: str, inbox: str) -> bool:
    """Whether the inbox is one process of several of an agent, a worker of the village: its tasks end with it."""
    return inbox not in ("", agent_id)


def allowed(task: Task, agent: Agent, standing: Standing, at: datetime) -> bool:
    """Whether the task's own rules let the agent have it."""
    return agent.agent_id not in task.excluded and (not task.trust_min or standing.score(at) >= task.trust_min)
