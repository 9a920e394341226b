"""Farm records: tasks, their ranks round by round, the clients that hold ranks, and the processes that hold clients."""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

from cluster.farm.order import Order
from cluster.farm.resources import Frozen, Resources, System
from cluster.store import Index, Record


class TaskState(StrEnum):
    """The document's words."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED})


class RankState(StrEnum):
    """Where a rank of a round is. `FAILED`, `LOST` and `RELEASED` wait for the keeper to hand them on or drop them."""

    HELD = "held"
    OPEN = "open"
    COMPLETED = "completed"
    FAILED = "failed"
    LOST = "lost"  # the lease or the time ran out
    RELEASED = "released"  # its client gave it back
    CUT = "cut"  # late, or its task has ended
    DEAD = "dead"  # no retry is left


class Round(Frozen):
    """How a round ended."""

    round: int
    completed: int  # ranks
    left_out: int
    samples: int | None  # that the average weighs, None where no rank told any
    aggregated: bool
    refused: dict[int, str] = {}  # rank -> why its checkpoint is not in the average
    ended_at: datetime


def _lists(task: "FarmTask") -> Iterable[tuple[str, ...]]:
    if task.deleted:
        return
    for whose in (("all",), ("owner", task.owner)):
        yield whose
        yield (*whose, "status", task.state)
        yield (*whose, "type", task.order.type)
        yield (*whose, "type", task.order.type, "status", task.state)


class FarmTask(Record):
    """A task: `n_clients` ranks, `rounds` times. Only the keeper hands out ranks and ends rounds."""

    kind: ClassVar[str] = "farm_task"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index("list", score=lambda t: t.created_at.timestamp(), parts=_lists),
        Index("work", score=lambda t: t.created_at.timestamp(), parts=lambda t: [()] if t.has_work else []),
        Index("unsettled", score=lambda t: t.created_at.timestamp(), parts=lambda t: [()] if t.unsettled else []),
        Index("cut", score=lambda t: t.cut_at.timestamp(), parts=lambda t: [()] if t.cuts else []),
    )

    task_id: str
    owner: str
    order: Order
    state: TaskState = TaskState.PENDING
    deleted: bool = False  # the keeper removes what belongs to it, and it last
    tidy: bool = True  # no rank is held by anybody although the task has ended
    round: int = 0
    handed: int = 0  # ranks below this one have been handed out in this round
    open_ranks: tuple[int, ...] = ()  # those of them that are free again
    cut_at: datetime | None = None  # then the round goes on without the late ones
    paused_at: datetime | None = None
    paused_seconds: float = 0.0  # in earlier pauses
    averages: tuple[int, ...] = ()  # rounds that begin with an average of their own, those that are kept
    history: tuple[Round, ...] = ()  # the last ones
    aggregated: bool | None = None  # whether the last round gave an average; None before there was a round
    metrics: dict[str, Any] = {}  # of the last finished round
    reason: str = ""  # that was given with the last change of status
    error: str = ""
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None

    @property
    def id(self) -> str:
        """See `Record`."""
        return self.task_id

    @property
    def live(self) -> bool:
        """Whether ranks of it may be handed out, now or after a pause."""
        return self.state not in FINAL and not self.deleted

    @property
    def has_work(self) -> bool:
        """Whether a rank waits for a client."""
        free = bool(self.open_ranks) or self.handed < self.order.n_clients
        return self.live and self.state is not TaskState.PAUSED and free

    @property
    def unsettled(self) -> bool:
        """Whether the keeper has to look at it when it starts."""
        return self.deleted or not self.tidy or self.state not in FINAL

    @property
    def cuts(self) -> bool:
        """Whether stragglers will be cut off at a time that is known."""
        return self.cut_at is not None and self.state is TaskState.RUNNING and not self.deleted


def _shelves(rank: "Rank") -> Iterable[tuple[str, ...]]:
    yield (rank.task_id,)
    yield (rank.task_id, str(rank.round), rank.state)


class Rank(Record):
    """One rank in one round; there is one from the moment that it is first handed out."""

    kind: ClassVar[str] = "farm_rank"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index("task", score=lambda r: r.ended_at.timestamp() if r.ended_at else 0.0, parts=_shelves),
        Index(
            "deadline", score=lambda r: r.deadline.timestamp(),
            parts=lambda r: [()] if r.state is RankState.HELD else [],
        ),
    )  # fmt: skip

    rank_id: str
    task_id: str
    owner: str  # the task's
    round: int
    rank: int
    state: RankState = RankState.HELD
    client_id: str  # who holds it, or held it last
    attempt: int = 1
    failures: int = 0
    losses: int = 0
    progress: float = 0.0
    metrics: dict[str, Any] = {}
    samples: int | None = None
    checkpoint_path: str = ""  # what the client calls it; never opened
    upload: str = ""  # file name of its checkpoint here
    upload_bytes: int = 0
    refused: str = ""  # why the checkpoint is not in the average
    error: str = ""
    assigned_at: datetime
    deadline: datetime  # as far as is known: a pause moves it
    paused_before: float = 0.0  # seconds for which the task had been paused when this was handed out
    ended_at: datetime | None = None

    @property
    def id(self) -> str:
        """See `Record`."""
        return self.rank_id


def rank_id(task_id: str, round_: int, rank: int) -> str:
    """One for each rank of each round."""
    return f"{task_id}.{round_}.{rank}"


class Past(Frozen):
    """A rank that a client held, and how that ended."""

    task_id: str
    round: int
    rank: int
    attempt: int
    state: RankState
    progress: float


def _whose(client: "Client") -> Iterable[tuple[str, ...]]:
    yield ("all",)
    yield ("owner", client.owner)


class Client(Record):
    """A machine that comes to work. It belongs to whoever used its id first."""

    kind: ClassVar[str] = "farm_client"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index("list", score=lambda c: c.created_at.timestamp(), parts=_whose),
        Index("seen", score=lambda c: c.last_seen.timestamp(), parts=_whose),
        Index(
            "waiting", score=lambda c: c.waiting_since.timestamp(), parts=lambda c: [()] if c.waiting_since else []
        ),
        Index("lease", score=lambda c: c.lease_until.timestamp(), parts=lambda c: [()] if c.lease_until else []),
    )  # fmt: skip

    client_id: str
    owner: str
    desk: str = ""  # the process that has its connection
    connection: str = ""
    waiting_since: datetime | None = None  # for a task; only while connected
    holds: str = ""  # a rank's id
    lease_until: datetime | None = None  # of the rank that it holds
    system: System = System()
    resources: Resources | None = None
    completed: int = 0  # ranks
    failed: int = 0  # failed, lost, or too late
    busy_seconds: float = 0.0  # of the completed ones
    recent: tuple[Past, ...] = ()
    created_at: datetime
    last_seen: datetime

    @property
    def id(self) -> str:
        """See `Record`."""
        return self.client_id

    @property
    def agent_id(self) -> str:
        """Under what it stands in the trust ledger."""
        return f"farm_{self.client_id}"


class Desk(Record):
    """A process that has connections of clients; it says every now and then that it lives."""

    kind: ClassVar[str] = "farm_desk"
    indexes: ClassVar[tuple[Index, ...]] = (Index("at", score=lambda d: d.at.timestamp()),)

    desk_id: str
    at: datetime

    @property
    def id(self) -> str:
        """See `Record`."""
        return self.desk_id
