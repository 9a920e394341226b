"""Proving a ledger: every link, every sum, and that the standing is what the lines add up to. Pure."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from cluster.trust import score
from cluster.trust.ledger import GENESIS, Chain, Standing, TrustRecord, digest
from cluster.trust.score import TrustEvent

SUMS = ("good", "bad", "good_ever", "bad_ever")
EXACT = ("completed", "failed", "as_of", "last_completed_at")


@dataclass(frozen=True)
class Verdict:
    """What a replay found."""

    agent_id: str
    checked: int = 0  # lines that hold
    head: str = GENESIS
    fault: str | None = None
    record_id: str = ""  # of the line that does not hold, where it is one


class Replay:
    """Follows one agent's lines, oldest first; after the first fault it takes no more."""

    def __init__(self, agent_id: str = "") -> None:
        self.agent_id = agent_id
        self.chain: Chain | None = None
        self.untimed = 0  # completions whose line does not say how long they took
        self.number, self.head = 0, GENESIS
        self.fault: str | None = None
        self.record_id = ""

    def add(self, record: TrustRecord) -> bool:
        """Whether the line follows, is as it was written, and adds up."""
        if self.fault is None and (fault := self._wrong(record)):
            self.fault, self.record_id = fault, record.trust_record_id
        return self.fault is None

    def broken(self, fault: str, record_id: str = "") -> None:
        """What is wrong with a line that could not even be read."""
        if self.fault is None:
            self.fault, self.record_id = fault, record_id

    def _wrong(self, record: TrustRecord) -> str | None:
        number = self.number + 1
        if record.number != number or record.previous != self.head:
            return f"record {number} does not follow the one before it"
        if digest(record) != record.hash:
            return f"record {number} was changed after it was written"
        if self.agent_id and record.agent_id != self.agent_id:
            return f"record {number} is another agent's"
        self.chain = self.chain or Chain(Standing(standing_id=record.agent_id, as_of=record.created_at))
        if record.created_at < self.chain.at:
            return f"record {number} is older than the one before it"
        before = self.chain.count(record.event_type, record.good, record.bad, record.created_at, record.seconds)
        after = score.mean(self.chain.good, self.chain.bad)
        if abs(before - record.before) > 1e-9 or abs(after - record.after) > 1e-9:
            return f"record {number} does not add up"
        self.untimed += record.event_type is TrustEvent.COMPLETED and record.seconds is None
        self.number, self.head = number, record.hash
        return None

    def against(self, standing: Standing | None) -> Verdict:
        """The verdict, once all lines were added and the stored standing is at hand."""
        fault = self.fault or self._unlike(standing)
        return Verdict(self.agent_id, self.number, self.head, fault, self.record_id if self.fault else "")

    def _unlike(self, standing: Standing | None) -> str | None:
        if standing is None:
            return "there are lines and no standing" if self.number else None
        if standing.head != self.head or standing.length != self.number:
            return "the chain does not end where the standing says"
        if self.chain is None:
            idle = not any(getattr(standing, name) for name in (*SUMS, "completed", "failed", "busy_seconds"))
            return None if idle else "the standing has evidence without a line"
        found = self.chain.standing()
        wrong = [name for name in SUMS if not _near(getattr(standing, name), getattr(found, name))]
        wrong += [name for name in EXACT if getattr(standing, name) != getattr(found, name)]
        if not self.untimed and not _near(standing.busy_seconds, found.busy_seconds):
            wrong.append("busy_seconds")
        return f"the standing is not what its lines add up to: {', '.join(wrong)}" if wrong else None


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)


def verify(records: Iterable[TrustRecord]) -> str | None:
    """What is wrong with one agent's lines, oldest first; None when every link and every sum holds."""
    replay = Replay()
    all(replay.add(record) for record in records)
    return replay.fault
