"""The trust ledger: hash-chained records per agent, and the standing that they add up to. Pure.

Each record's hash covers its content and the hash before it (as in RFC 6962's append-only logs, without the tree), so
editing, dropping or reordering one breaks every later link.
"""

import hashlib
from datetime import datetime
from json.encoder import encode_basestring as _text  # escapes what RFC 8785 escapes, and in C
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
    seconds: float | None = None  # that the work took; lines from before this was written do not say
    created_at: datetime
    previous: str
    hash: str = ""


def canonical(record: TrustRecord) -> str:
    """The record's canonical JSON (RFC 8785) without its own hash; `rfc8785` gives the same bytes in ten times as long.

    Keys stand in the order of that form. `seconds` is left out where it is not known: lines from before it was written
    have no such member.
    """
    at = record.created_at.isoformat()
    if not at.endswith("+00:00"):
        return _canonical_slowly(record)
    seconds = "" if record.seconds is None else f'"seconds":{_number(record.seconds)},'
    return (
        f'{{"after":{_number(record.after)},"agent_id":{_text(record.agent_id)},"bad":{_number(record.bad)},'
        f'"before":{_number(record.before)},"by":{_text(record.by)},"created_at":"{at[:-6]}Z",'
        f'"event_type":"{record.event_type.value}","good":{_number(record.good)},"number":{record.number},'
        f'"previous":{_text(record.previous)},"reason":{_text(record.reason)},{seconds}'
        f'"task_id":{_text(record.task_id)},"trust_record_id":{_text(record.trust_record_id)}}}'
    )


def _canonical_slowly(record: TrustRecord) -> str:
    without = {"hash"} if record.seconds is not None else {"hash", "seconds"}
    return rfc8785.dumps(record.model_dump(mode="json", exclude=without)).decode()


def _number(value: float) -> str:
    text = repr(value)
    if "e" in text or "n" in text:  # Python and ECMAScript write exponents differently; infinities are refused
        return rfc8785.dumps(value).decode()
    if text.endswith(".0"):
        return "0" if text == "-0.0" else text[:-2]
    return text


def digest(record: TrustRecord) -> str:
    """The link: SHA-256 of the record's canonical JSON without its own hash."""
    return hashlib.sha256(canonical(record).encode()).hexdigest()


class Chain:
    """The end of one agent's chain, to which lines are added; a standing is made once, after the last of them."""

    def __init__(self, standing: Standing) -> None:
        self.before = standing
        self.good, self.bad, self.at = standing.good, standing.bad, standing.as_of
        self.good_ever, self.bad_ever = standing.good_ever, standing.bad_ever
        self.head, self.length = standing.head, standing.length
        self.completed, self.failed = standing.completed, standing.failed
        self.busy_seconds, self.last_completed_at = standing.busy_seconds, standing.last_completed_at

    def count(self, event: TrustEvent, good: float, bad: float, at: datetime, seconds: float | None) -> float:
        """Add one outcome to the sums; returns the score before it."""
        if at > self.at:
            weight = score.fading(self.at, at)
            self.good, self.bad, self.at = self.good * weight, self.bad * weight, at
        before = score.mean(self.good, self.bad)
        self.good, self.bad = self.good + good, self.bad + bad
        self.good_ever, self.bad_ever = self.good_ever + good, self.bad_ever + bad
        if event is TrustEvent.COMPLETED:
            self.completed += 1
            self.busy_seconds, self.last_completed_at = self.busy_seconds + (seconds or 0.0), at
        elif event is TrustEvent.FAILED or event is TrustEvent.TIMEOUT:
            self.failed += 1
        return before

    def add(
        self, event: TrustEvent, good: float, bad: float, reason: str, at: datetime, *, task_id: str = "",
        seconds: float | None = None, by: str = "",
    ) -> TrustRecord:  # fmt: skip
        """One more line."""
        at = max(at, self.at)  # a clock that steps back does not undo what was written
        agent_id, number, previous = self.before.standing_id, self.length + 1, self.head
        before = self.count(event, good, bad, at, seconds)
        # The number first: lines of one instant stand in an index in the order of their ids.
        name = hashlib.sha256(f"{agent_id}/{number}/{previous}".encode()).hexdigest()[:16]
        line = TrustRecord(
            trust_record_id=f"rec_{number:08x}{name}", agent_id=agent_id, number=number, event_type=event,
            task_id=task_id, good=good, bad=bad, before=before, after=score.mean(self.good, self.bad), reason=reason,
            by=by, seconds=seconds or 0.0 if event is TrustEvent.COMPLETED else seconds, created_at=at,
            previous=previous,
        )  # fmt: skip
        self.head, self.length = digest(line), number
        return line.model_copy(update={"hash": self.head})

    def standing(self, through: str = "") -> Standing:
        """Where the agent stands after the last line; `through` is the last event that is in it."""
        return self.before.model_copy(
            update={
                "good": self.good, "bad": self.bad, "good_ever": self.good_ever, "bad_ever": self.bad_ever,
                "as_of": self.at, "head": self.head, "length": self.length, "completed": self.completed,
                "failed": self.failed, "busy_seconds": self.busy_seconds, "last_completed_at": self.last_completed_at,
                "through": through or self.before.through,
            }
        )  # fmt: skip


def append(
    standing: Standing, event: TrustEvent, good: float, bad: float, reason: str, at: datetime,
    *, task_id: str = "", seconds: float | None = None, by: str = "",
) -> tuple[Standing, TrustRecord]:  # fmt: skip
    """The standing after one more line, and the line."""
    chain = Chain(standing)
    line = chain.add(event, good, bad, reason, at, task_id=task_id, seconds=seconds, by=by)
    return chain.standing(), line
