"""The protocol of `/farm/ws`, without the socket: what a client may say, what it is told, and what it knows."""

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from cluster.clock import iso
from cluster.errors import Conflict, Invalid, UnsupportedMedia
from cluster.farm import machine
from cluster.farm.model import FarmTask, Rank, TaskState
from cluster.farm.resources import Resources, System

LARGEST_MESSAGE = 64 << 10  # bytes
MOST_METRICS = 100
CLIENT_ID = r"^[A-Za-z0-9._-]{1,128}$"

Message = dict[str, Any]


def _bounded(metrics: dict[str, Any]) -> dict[str, Any]:
    """A loss that is not a number is told as null: JSON has no word for it."""
    if len(metrics) > MOST_METRICS or any(len(name) > 100 for name in metrics):
        raise ValueError(f"at most {MOST_METRICS} metrics, whose names have at most 100 characters")
    if any(isinstance(value, str) and len(value) > 500 for value in metrics.values()):
        raise ValueError("the text of a metric has at most 500 characters")
    return {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in metrics.items()}


Metrics = Annotated[dict[str, bool | int | float | str | None], AfterValidator(_bounded)]
TaskId = Annotated[str, Field(min_length=1, max_length=100)]


class Said(BaseModel):
    """A message of a client. `client_id`, where it stands, has to be the connection's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    client_id: str = ""


class Heartbeat(Said):
    """The machine as it is now."""

    system_info: System = System()
    resources: Resources | None = None


class TaskRequest(Said):
    """Wants a task, now or when there is one."""


class About(Said):
    """Something about the rank that the client holds; `round` and `attempt`, where told, have to be its."""

    task_id: TaskId
    round: int | None = Field(None, ge=0)
    attempt: int | None = Field(None, ge=1)
    metrics: Metrics = {}


class Progress(About):
    """How far it is, in percent."""

    progress: float = Field(ge=0, le=100, allow_inf_nan=False)


class Result(About):
    """The end of the work on a rank. `checkpoint_path` is a label; `samples` weighs its checkpoint."""

    status: Literal["completed", "failed", "stopped"]
    checkpoint_path: str | None = Field(None, max_length=1000)
    samples: int | None = Field(None, ge=0, le=10**12)
    error: str | None = Field(None, max_length=5000)


KINDS: dict[str, type[Said]] = {
    "heartbeat": Heartbeat, "task_request": TaskRequest, "task_progress": Progress, "task_result": Result
}  # fmt: skip


def read(text: str, client_id: str) -> Said:
    """A message. Raises `UnsupportedMedia` for what is not JSON, `Invalid` for what is and says nothing good."""
    try:
        said = from_json(text)
    except ValueError as error:
        raise UnsupportedMedia("the message is not JSON") from error
    if not isinstance(said, dict):
        raise Invalid("a message is a JSON object")
    kind = said.get("type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise Invalid("unknown type", field="type", allowed_values=sorted(KINDS))
    try:
        read = KINDS[kind].model_validate(said)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise Invalid(f"{field}: {first['msg']}", field=field) from error
    if read.client_id not in ("", client_id):
        raise Invalid("client_id is another than the connection's Client-ID", field="client_id")
    return read


def config(task: FarmTask, rank: Rank, lease_seconds: float) -> dict[str, Any]:
    """What the client has to know of its rank. Paths are the server's own; `url` is the owner's label."""
    order, at = task.order, f"/api/tasks/{task.task_id}"
    begins = machine.begins_with(task, rank.round) is not None
    return {
        "name": order.name, "version": order.version, "url": order.url, "batch_size": order.batch_size,
        "learning_rate": order.learning_rate, "epochs": order.epochs,
        "distributed": order.distributed or order.n_clients > 1, "rank": rank.rank, "world_size": order.n_clients,
        "round": rank.round, "rounds": order.rounds, "attempt": rank.attempt, "lease_seconds": lease_seconds,
        "timeout_seconds": order.timeout_seconds, "model": order.model, "dataset": order.dataset,
        "checkpoint": f"{at}/checkpoint?round={rank.round}" if begins else None,
        "upload": f"{at}/checkpoints/{rank.rank}?round={rank.round}", "steps": order.steps, "seed": order.seed,
    }  # fmt: skip


@dataclass
class Conversation:
    """What the client at the other end knows, so that it is told each thing once."""

    client_id: str
    lease_seconds: float
    waiting: bool = False  # for a task
    rank_id: str = ""  # of the rank that it has, as far as it knows
    attempt: int = 0
    task_id: str = ""
    paused: bool = False
    stopped: bool = False

    def resumes(self, task: FarmTask | None, rank: Rank | None, at: datetime) -> list[Message]:
        """It has come back and may work on `rank`, or on something that is no longer its."""
        if rank is None:
            return []
        self._now(rank)
        if task is None or not task.live or task.round != rank.round:
            return self.control("stop", at)
        if task.state is TaskState.PAUSED:
            return self.control("pause", at)
        self.paused = task.paused_seconds > 0  # a pause may have ended while it was away
        return self.control("resume", at)

    def task(self, task: FarmTask, rank: Rank, resumed: bool, at: datetime) -> list[Message]:
        """The assignment, and a pause if the task is in one."""
        self.waiting = False
        self._now(rank)
        data: dict[str, Any] = {
            "id": task.task_id, "type": task.order.type, "config": config(task, rank, self.lease_seconds),
            "requirements": task.order.requirements.model_dump(),
        }  # fmt: skip
        if resumed:
            data["resumed"] = True
        told: list[Message] = [{"type": "task", "data": data, "timestamp": iso(at)}]
        return told + (self.control("pause", at) if task.state is TaskState.PAUSED else [])

    def _now(self, rank: Rank) -> None:
        self.rank_id, self.attempt, self.task_id = rank.rank_id, rank.attempt, rank.task_id
        self.paused = self.stopped = False

    def control(self, action: Literal["pause", "resume", "stop"], at: datetime, task_id: str = "") -> list[Message]:
        """The order, if it is news. With `task_id`: about something that the client should not be doing."""
        about = task_id or self.task_id
        if about == self.task_id:
            if self.stopped or (action != "stop" and self.paused == (action == "pause")):
                return []
            self.paused, self.stopped = action == "pause", action == "stop"
        return [{"type": "control", "action": action, "task_id": about, "timestamp": iso(at)}]

    def over(self) -> None:
        """It has nothing in hand."""
        self.rank_id, self.attempt, self.task_id = "", 0, ""
        self.paused = self.stopped = False


def acknowledged(task_id: str, reason: str, at: datetime) -> Message:
    """A result has arrived; `reason` says why it does not count."""
    told: Message = {"type": "task_result_ack", "task_id": task_id, "received": True, "accepted": not reason}
    return told | ({"reason": reason} if reason else {}) | {"timestamp": iso(at)}


def refusal(code: str, message: str, details: dict[str, Any], at: datetime) -> Message:
    """What was wrong with a message; the connection goes on."""
    return {"type": "error", "code": code, "message": message, "details": details, "timestamp": iso(at)}


class Replaced(Conflict):
    """The same client has a newer connection."""
