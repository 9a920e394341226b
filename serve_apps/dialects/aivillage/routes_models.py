"""AIVillage, the forge: train, watch, cancel; list, download and delete models."""

from datetime import timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from cluster.clock import iso
from cluster.errors import Invalid
from cluster.identity.model import SYSTEM
from serve_apps.core import Core, FromCore
from serve_apps.dialects.aivillage.envelope import VillageRoute
from serve_apps.kit.auth import SignedIn
from serve_apps.kit.call import FromCall
from serve_apps.kit.pagination import Limit10, Offset
from train.registry import Model, ModelState
from train.runs import Run, RunState

router = APIRouter(prefix="/v1/models", route_class=VillageRoute)

WORD = {  # the document's words for a run's state
    RunState.PENDING: "queued",
    RunState.RUNNING: "training",
    RunState.COMPLETED: "completed",
    RunState.FAILED: "failed",
    RunState.CANCELLED: "cancelled",
}
TAR = "application/x-tar"
RECENT = 10  # completed runs that an estimate looks back on


class TrainRequest(BaseModel):
    """What to train. `parameters` are the phase's own; `GET /docs` and its configuration file say which."""

    phase_name: str = Field(min_length=1, max_length=64, examples=["cognate"])
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
    """Shares from 0 to 1; a run is one phase."""

    overall_progress: float
    current_phase_progress: float
    phases_completed: int
    total_phases: int
    estimated_time_remaining: str | None


class RunStatus(BaseModel):
    """A run as it is now. `metrics` are the last that it reported."""

    task_id: str
    model_id: str
    status: str
    current_phase: str
    progress: RunProgress
    metrics: dict[str, Any]
    attempt: int
    error: str
    logs_url: str


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


async def estimate(core: Core, run: Run) -> str:
    """How long such a run took here lately, by its steps; `unknown` before there was one."""
    recent = await core.forge.page(SYSTEM, RunState.COMPLETED, limit=RECENT)
    for past in recent.items:
        if past.phase == run.phase and past.started_at and past.ended_at and past.attempt == 1:
            took: timedelta = past.ended_at - past.started_at
            return in_words(took.total_seconds() * run.total_steps / past.total_steps) or "unknown"
    return "unknown"


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
            current_phase_progress=run.progress,
            phases_completed=int(done),
            total_phases=1,
            estimated_time_remaining=in_words(run.remaining_seconds),
        ),
        metrics=run.metrics
        | {"batch_size": run.config.get("batch_size"), "current_step": run.step, "total_steps": run.total_steps},
        attempt=run.attempt,
        error=run.error,
        logs_url=f"/v1/models/train/{run.run_id}/logs",
    )


def model_answer(model: Model) -> ModelAnswer:
    """The document's shape."""
    done = model.state is ModelState.COMPLETED
    measured: dict[str, Any] = dict(model.metrics)
    if done:
        measured |= {"model_size": size_in_words(model.size_bytes), "parameters": model.parameters}
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


@router.post("/train", responses={404: {}, 501: {}})
async def train(body: TrainRequest, who: SignedIn, core: FromCore, call: FromCall, request: Request) -> TrainingStarted:
    """Start a training run; its progress comes over `/ws`."""
    if not body.real_training:
        raise Invalid("there is only real training here", field="real_training", allowed_values=[True])
    run = await core.forge.start(
        who, body.phase_name, body.parameters, max_steps=body.max_steps, batch_size=body.batch_size,
        model_name=body.model_name,
    )  # fmt: skip
    call.message = f"Training started for phase {run.phase}"
    return TrainingStarted(
        task_id=run.run_id,
        model_id=run.model_id,
        phase=run.phase,
        status="started",
        real_training=True,
        user_id=run.owner,
        estimated_duration=await estimate(core, run),
        progress_url=str(request.base_url.replace(scheme="wss" if request.url.scheme == "https" else "ws")) + "ws",
    )


@router.get("/train/{task_id}/status", response_description="Training status retrieved")
async def training_status(task_id: str, who: SignedIn, core: FromCore) -> RunStatus:
    """A run as it is now."""
    return status_of(await core.forge.get(who, task_id))


@router.get("/train/{task_id}/logs", response_description="Training logs retrieved")
async def training_logs(
    task_id: str, who: SignedIn, core: FromCore, tail: Annotated[int, Query(ge=1, le=10_000)] = 200
) -> RunLogs:
    """The last lines of its log."""
    return RunLogs(task_id=task_id, logs=await core.forge.logs(who, task_id, tail))


@router.post("/train/{task_id}/cancel", response_description="Training cancelled")
@router.delete("/train/{task_id}", response_description="Training cancelled", operation_id="aivillage_delete_training")
async def cancel_training(task_id: str, who: SignedIn, core: FromCore) -> RunStatus:
    """End a run that has not ended."""
    return status_of(await core.forge.cancel(who, task_id))


@router.get("", response_description="Models retrieved successfully")
async def list_models(
    who: SignedIn, core: FromCore, limit: Limit10 = 10, offset: Offset = 0,
    status: Literal["training", "completed", "failed", "cancelled", "all"] = "all",
    phase: Annotated[str, Query(max_length=64)] = "",
) -> ModelList:  # fmt: skip
    """The caller's models and the public ones, newest first."""
    page = await core.models.page(who, "any" if status == "all" else status, phase or "any", limit, offset)
    return ModelList(models=[model_answer(m) for m in page.items], total_count=page.total, user_id=who.owner)


@router.get("/{model_id}", response_description="Model retrieved")
async def get_model(model_id: str, who: SignedIn, core: FromCore) -> ModelAnswer:
    """One model, by id or name."""
    return model_answer(await core.models.get(who, model_id))


@router.get("/{model_id}/download", response_class=StreamingResponse, responses={200: {"content": {TAR: {}}}, 422: {}})
async def download(model_id: str, who: SignedIn, core: FromCore) -> StreamingResponse:
    """The model's folder (safetensors, tokenizer, configuration) as a tar."""
    model = await core.models.get(who, model_id)
    pieces = await core.models.archive(who, model.model_id)
    headers = {"Content-Disposition": f'attachment; filename="{model.model_id}.tar"', "ETag": f'"{model.digest}"'}
    return StreamingResponse(pieces, media_type=TAR, headers=headers)


@router.delete("/{model_id}", response_description="Model deleted")
async def delete_model(model_id: str, who: SignedIn, core: FromCore) -> Deleted:
    """Remove a model of one's own for good."""
    return Deleted(model_id=(await core.models.delete(who, model_id)).model_id)
