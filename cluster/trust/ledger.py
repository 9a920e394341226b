"""The trust ledger: hash-chained records per agent, and the standing that they add up to. Pure.

Each record's hash covers its content and the hash before it (as in RFC 6962's append-only logs, without the tree), so
editing, dropping or reordering one breaks every later link.
"""

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import ClassVar

import rfc8785

from cluster.store import Index, Record
from cluster.trust import score
from cluster.trust.score import Evidence, TrustEvent

GENESIS = "0" * 64


class Standing(Record):
    """Where an agent stands after its last record: a cache that `replay` can rebuild."""

    kind: ClassVar[str] = "standing"
    indexes: ClassVar[tuple[Index, ...]] = (Index("score", score=lambda s: s.evidence.mean),)

    standing_id: str  # the agent's id
    good: float = 0.0
    bad: float = 0.0
    good_ever: float = 0.0  # unfaded, for the reliability rating
    bad_ever: float = 0.0
    as_of: datetime
    head: str = GENESIS
    length: int = 0
    completed: int = 0
    failed: int = 0  # time-outs too
    busy_seconds: float = 0.0  # of completed tasks
    last_completed_at: datetime | None = None
    through: str = ""  # the last event of the stream that is in it: an event counts once

    @property
    def evidence(self) -> Evidence:
        """What it rests on."""
        return Evidence(self.good, self.bad, self.as_of)

    def score(self, at: datetime) -> float:
        """The trust score at a time."""
        return score.faded(self.evidence, at).mean

    @property
    def mean_seconds(self) -> float | None:
        """Mean time of a completed task."""
        return self.busy_seconds / self.completed if self.completed else None

    @property
    def success_rate(self) -> float:
        """Completed over finished; 0 while nothing is finished."""
        finished = self.completed + self.failed
        return self.completed / finished if finished else 0.0


class TrustRecord(Record):
    """One line of the ledger. The order of one agent's lines is their `number`."""

    kind: ClassVar[str] = "trust_record"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index("agent", score=lambda r: r.number, parts=lambda r: [(r.agent_id,)]),
        Index("time", score=lambda r: r.created_at.timestamp(), parts=lambda r: [(r.agent_id,)]),
    )

    trust_record_id: str
    agent_id: str
    number: int
    event_type: TrustEvent
    task_id: str = ""
    good: float
    bad: float
    before: float
    after: float
    reason: str
    by: str = ""  # who adjusted
    created_at: datetime
    previous: str
    hash: str = ""


def digest(record: TrustRecord) -> str:
    """The link: SHA-256 of the record's canonical JSON without its own hash."""
    content = record.model_dump(mode="json", exclude={"hash"})
    return hashlib.sha256(rfc8785.dumps(content)).hexdigest()


def append(
    standing: Standing, event: TrustEvent, good: float, bad: float, reason: str, at: datetime,
    *, task_id: str = "", seconds: float | None = None, by: str = "",
) -> tuple[Standing, TrustRecord]:  # fmt: skip
    """The standing after one more line, and the line."""
    at = max(at, standing.as_of)  # a clock that steps back does not undo what was written
    before = score.faded(standing.evidence, at)
    after = score.observe(standing.evidence, good, bad, at)
    number = standing.length + 1
    # The number first: lines of one instant stand in an index in the order of their ids.
    name = f"{number:08x}{hashlib.sha256(f'{standing.standing_id}/{number}/{standing.head}'.encode()).hexdigest()[:16]}"
    line = TrustRecord(
        trust_record_id=f"rec_{name}", agent_id=standing.standing_id, number=number, event_type=event, task_id=task_id,
        good=good, bad=bad, before=before.mean, after=after.mean, reason=reason, by=by, created_at=at,
        previous=standing.head,
    )  # fmt: skip
    line = line.model_copy(update={"hash": digest(line)})
    counts = {
        "completed": standing.completed + (event is TrustEvent.COMPLETED),
        "failed": standing.failed + (event in (TrustEvent.FAILED, TrustEvent.TIMEOUT)),
    }
    if event is TrustEvent.COMPLETED:
        counts |= {"busy_seconds": standing.busy_seconds + (seconds or 0.0), "last_completed_at": at}
    return standing.model_copy(
        update=counts | {
            "good": after.good, "bad": after.bad, "good_ever": standing.good_ever + good,
            "bad_ever": standing.bad_ever + bad, "as_of": at, "head": line.hash, "length": number,
        }
    ), line  # fmt: skip


def verify(records: Iterable[TrustRecord]) -> str | None:
    """What is wrong with one agent's chain, oldest record first; None when every link and every sum holds."""
    head, evidence, number = GENESIS, None, 0
    for number, record in enumerate(records, start=1):
        if record.number != number or record.previous != head:
            return f"record {number} does not follow the one before it"
        if digest(record) != record.hash:
            return f"record {number} was changed after it was written"
        evidence = evidence or Evidence(0.0, 0.0, record.created_at)
        before = score.faded(evidence, record.created_at).mean
        evidence = score.observe(evidence, record.good, record.bad, record.created_at)
        if abs(before - record.before) > 1e-9 or abs(evidence.mean - record.after) > 1e-9:
            return f"record {number} does not add up"
        head = record.hash
    return None
