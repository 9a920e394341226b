"""AIVillage, the forge: what its requests and answers look like."""

from typing import Any

from pydantic import BaseModel, Field

from cluster.clock import iso
from train.phases import catalogue
from train.phases.catalogue import Entry
from train.registry import Model, ModelState
from train.runs import Run, RunState
from train.trials import Trial

WORD = {  # the document's words for a run's state
    RunState.PENDING: "queued",
    RunState.RUNNING: "training",
    RunState.COMPLETED: "completed",
    RunState.FAILED: "failed",
    RunState.CANCELLED: "cancelled",
}


class PhaseRequest(BaseModel):
    """One phase of several."""

    phase_name: str = Field(min_length=1, max_length=64, examples=["evomerge"])
    parameters: dict[str, Any] = {}


class TrainRequest(BaseModel):
    """What to train: one phase, or a pipeline by name, or `phases` in order.

    `parameters` are the phase's own (docs/forge.md lists them); of several phases each takes those that it has.
    """

    phase_name: str = Field("", max_length=64, examples=["cognate"])
    phases: list[PhaseRequest] = Field([], max_length=32)
    parameters: dict[str, Any] = {}
    real_training: bool = True
    max_steps: int | None = Field(None, ge=1, le=10_000_000, examples=[2000])
    batch_size: int | None = Field(None, ge=1, le=65_536, examples=[4])
    model_name: str = Field("", max_length=128)


class TrainingStarted(BaseModel):
    """A run that has been recorded and handed to the cluster."""

    task_id: str
    model_id: str
    phase: str
    status: str
    real_training: bool
    user_id: str
    estimated_duration: str
    progress_url: str


class RunProgress(BaseModel):
    """Shares from 0 to 1; every phase of a run counts alike."""

    overall_progress: float
    current_phase_progress: float
    phases_completed: int
    total_phases: int
    estimated_time_remaining: str | None


class StageStatus(BaseModel):
    """One phase of a run. `before` and `after` are measured on the same held-out text; `reason` is the gate's."""

    phase: str
    state: str
    step: int
    total_steps: int
    before: dict[str, float] | None
    after: dict[str, float] | None
    metrics: dict[str, float]
    reason: str
    digest: str
    seconds: float


class RunStatus(BaseModel):
    """A run as it is now. `metrics` are the last that its current phase reported."""

    task_id: str
    model_id: str
    status: str
    current_phase: str
    progress: RunProgress
    metrics: dict[str, Any]
    phases: list[StageStatus]
    attempt: int
    error: str
    error_code: str | None
    cause: str
    logs_url: str


class RunList(BaseModel):
    """A page of runs; `total_count` counts all that the filter leaves."""

    runs: list[RunStatus]
    total_count: int
    user_id: str


class TrialAnswer(BaseModel):
    """One candidate of a search: what was tried, how it went."""

    trial_id: str
    number: int
    phase: str
    status: str
    candidate: dict[str, Any]
    step: int
    metrics: dict[str, float]
    created_at: str
    ended_at: str | None


class TrialList(BaseModel):
    """A page of a run's trials, in the order that they were begun in."""

    task_id: str
    trials: list[TrialAnswer]
    total_count: int


class Curve(BaseModel):
    """`steps` are (step, loss in nats per token, learning rate, gradient norm); `held_out` (step, loss, accuracy)."""

    phase: str
    stage: int
    name: str
    steps: list[tuple[int, float, float, float]]
    held_out: list[tuple[int, float, float]]


class Curves(BaseModel):
    """What has been measured while training."""

    task_id: str
    curves: list[Curve]


class PhaseAnswer(BaseModel):
    """A phase: `parameters` is the JSON schema of what a request may set, with the defaults that hold here."""

    name: str
    aliases: list[str]
    what: str
    paper: str
    parameters: dict[str, Any]


class PhaseList(BaseModel):
    """`pipelines` are names of several phases in order, which `phase_name` takes as well."""

    phases: list[PhaseAnswer]
    pipelines: dict[str, list[str]]


class RunLogs(BaseModel):
    """The last lines of the run's log, oldest first."""

    task_id: str
    logs: list[dict[str, Any]]


class ModelAnswer(BaseModel):
    """A model of the village. `digest` is the SHA-256 of its files."""

    model_id: str
    name: str
    status: str
    phases_completed: list[str]
    created_at: str
    completed_at: str | None
    metrics: dict[str, Any]
    digest: str
    public: bool
    lineage: dict[str, Any]
    download_url: str | None


class ModelList(BaseModel):
    """`total_count` counts all that the filter leaves."""

    models: list[ModelAnswer]
    total_count: int
    user_id: str


class Deleted(BaseModel):
    """What is gone."""

    model_id: str
    deleted: bool = True


def in_words(seconds: float | None) -> str | None:
    """`45 minutes`; None stays None."""
    if seconds is None:
        return None
    for size, name in ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size:
            count = round(seconds / size)
            return f"{count} {name}{'' if count == 1 else 's'}"
    return "less than a second"


def size_in_words(size_bytes: int) -> str:
    """`1.2GB`, in powers of 1000."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g}{unit}"
        size /= 1000
    return f"{size:.3g}GB"


def status_of(run: Run) -> RunStatus:
    """The document's shape."""
    done = run.state is RunState.COMPLETED
    return RunStatus(
        task_id=run.run_id,
        model_id=run.model_id,
        status=WORD[run.state],
        current_phase=run.phase,
        progress=RunProgress(
            overall_progress=run.progress,
            current_phase_progress=1.0 if done else run.stage.progress,
            phases_completed=run.stages_ended,
            total_phases=len(run.stages),
            estimated_time_remaining=in_words(run.remaining_seconds),
        ),
        metrics=run.metrics
        | {"batch_size": run.config.get("batch_size"), "current_step": run.step, "total_steps": run.total_steps},
        attempt=run.attempt,
        phases=[StageStatus(**stage.model_dump(exclude={"config"})) for stage in run.stages],
        error=run.error,
        error_code="MODEL_TRAINING_FAILED" if run.state is RunState.FAILED else None,
        cause=run.cause,
        logs_url=f"/v1/models/train/{run.run_id}/logs",
    )


def model_answer(model: Model) -> ModelAnswer:
    """The document's shape."""
    done = model.state is ModelState.COMPLETED
    measured: dict[str, Any] = dict(model.metrics)
    if done:
        measured |= {"model_size": size_in_words(model.size_bytes), "parameters": model.parameters}
        if (took := measured.get("inference_ms_per_token")) is not None:
            measured["inference_speed"] = f"{took:.3g}ms"  # a token, as the phase that made the model measured it
    return ModelAnswer(
        model_id=model.model_id,
        name=model.name,
        status=model.state.value,
        phases_completed=list(model.phases_completed),
        created_at=iso(model.created_at),
        completed_at=iso(model.completed_at) if model.completed_at else None,
        metrics=measured,
        digest=model.digest,
        public=model.public,
        lineage=model.lineage,
        download_url=f"/v1/models/{model.model_id}/download" if done else None,
    )


def trial_answer(trial: Trial) -> TrialAnswer:
    """As a record has it."""
    return TrialAnswer(
        trial_id=trial.trial_id, number=trial.number, phase=trial.phase, status=trial.state.value,
        candidate=trial.candidate, step=trial.step, metrics=trial.metrics, created_at=iso(trial.created_at),
        ended_at=iso(trial.ended_at) if trial.ended_at else None,
    )  # fmt: skip


def phase_answer(entry: Entry) -> PhaseAnswer:
    """The schema with the values of `configs/phases` as defaults."""
    schema = entry.load().Config.model_json_schema()
    for name, value in catalogue.values(entry.name).items():
        schema["properties"][name]["default"] = value
    return PhaseAnswer(
        name=entry.name, aliases=list(entry.aliases), what=entry.what, paper=entry.paper, parameters=schema
    )
