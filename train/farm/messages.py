"""What a farm may send, checked before anything acts on it. Every number has bounds; every id is only an id.

`name`, `version` and `url` of a task are labels: they are shown, never fetched, opened or executed.
"""

import hashlib
from typing import Annotated, Any, Literal, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MAX_MESSAGE = 1 << 20  # bytes of a frame
Id = Annotated[str, Field(min_length=1, max_length=128)]  # opaque: echoed, compared and hashed
Label = Annotated[str, Field(max_length=2048)]
Megabytes = Annotated[float, Field(ge=0, allow_inf_nan=False)]
SAME_WORK = {
    "rank", "world_size", "round", "rounds", "model", "dataset", "batch_size", "learning_rate", "epochs", "steps",
    "seed",
}  # fmt: skip


class Wire(BaseModel):
    """Unknown fields are a newer farm's, and ignored; null means the default."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, given: Any) -> Any:
        return {k: v for k, v in given.items() if v is not None} if isinstance(given, dict) else given


class Requirements(Wire):
    """What the farm says that the task needs; MB."""

    min_gpu_memory: Megabytes = 0
    min_cpu_cores: Megabytes = 0
    min_ram: Megabytes = 0


class TaskConfig(Wire):
    """How to train, and which share of the work is this worker's."""

    name: Label = ""
    version: Label = ""
    url: Label = ""
    batch_size: int = Field(8, ge=1, le=4096)  # rows of the model's context a step
    learning_rate: float = Field(1e-3, gt=0, le=10, allow_inf_nan=False)
    epochs: int = Field(1, ge=1, le=10_000)  # over this rank's share, in this round; `steps` overrules it
    steps: int | None = Field(None, ge=1, le=10_000_000)  # optimizer steps of this round
    distributed: bool = False
    rank: int = Field(0, ge=0, lt=10_000)
    world_size: int = Field(1, ge=1, le=10_000)
    round: int = Field(0, ge=0, le=1_000_000)
    rounds: int = Field(1, ge=1, le=1_000_000)
    attempt: int | None = Field(None, ge=1, lt=2**31)  # of this rank in this round: repeated in what is said of it
    lease_seconds: float = Field(60, gt=0, le=1e9, allow_inf_nan=False)
    model: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    dataset: str | None = Field(None, max_length=256)
    checkpoint: Label | None = None  # where this round's global model is
    upload: Label | None = None  # where this rank's weights go
    seed: int | None = Field(None, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _rank_is_of_the_world(self) -> "TaskConfig":
        if self.rank >= self.world_size:
            raise ValueError(f"rank {self.rank} in a world of {self.world_size}")
        return self


class Task(Wire):
    """An assignment."""

    id: Id
    type: Annotated[str, Field(max_length=128)] = "training"
    config: TaskConfig = Field(default_factory=lambda: TaskConfig.model_validate({}))
    requirements: Requirements = Field(default_factory=Requirements)
    resumed: bool = False

    @property
    def key(self) -> str:
        """Two assignments of one key are one piece of work: what was trained for one counts for the other."""
        same = self.config.model_dump(include=SAME_WORK) | {"id": self.id}
        return hashlib.sha256(orjson.dumps(same, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]

    @property
    def seed(self) -> int:
        """The task's, or one that follows from its id: the same on every rank."""
        if self.config.seed is not None:
            return self.config.seed
        return int.from_bytes(hashlib.sha256(self.id.encode("utf-8", "surrogatepass")).digest()[:7])


class Refused(NamedTuple):
    """A task that breaks the wire's rules, and which; `task_id` is empty where even that cannot be said."""

    task_id: str
    reason: str


class Control(Wire):
    """The farm wants the task to pause, go on, or end."""

    action: Literal["pause", "resume", "stop"]
    task_id: Id


class Ack(Wire):
    """The farm has the result; `accepted` false says that it did not count."""

    task_id: Id
    received: bool = True
    accepted: bool = True
    reason: Label = ""


class Problem(Wire):
    """The farm could not do what was asked."""

    code: Label = ""
    message: Label = ""


Message = Task | Refused | Control | Ack | Problem
KINDS: dict[str, type[Control] | type[Ack] | type[Problem]] = {
    "control": Control, "task_result_ack": Ack, "error": Problem,
}  # fmt: skip


def parse(frame: str | bytes) -> Message | None:
    """The message in a frame. None for what is not one, or of no kind that this worker knows."""
    try:
        content = orjson.loads(frame)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("type"), str):
        return None
    if content["type"] == "task":
        return _task(content.get("data"))
    kind = KINDS.get(content["type"])
    inner = content.get("error")
    try:
        return kind.model_validate(inner if kind is Problem and isinstance(inner, dict) else content) if kind else None
    except ValidationError:
        return None


def _task(data: Any) -> Task | Refused:
    try:
        return Task.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        named = data.get("id") if isinstance(data, dict) else None
        usable = isinstance(named, str) and 0 < len(named) <= 128
        return Refused(named if isinstance(named, str) and usable else "", f"{where}: {first['msg']}"[:500])
