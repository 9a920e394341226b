"""AIVillage, the forge: train, watch, cancel; list, download and delete models."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from cluster.errors import Invalid
from serve_apps.core import FromCore
from serve_apps.dialects.aivillage.envelope import VillageRoute
from serve_apps.dialects.aivillage.shapes_models import (
    WORD,
    Curve,
    Curves,
    Deleted,
    ModelAnswer,
    ModelList,
    PhaseList,
    RunList,
    RunLogs,
    RunStatus,
    TrainingStarted,
    TrainRequest,
    TrialList,
    in_words,
    model_answer,
    phase_answer,
    status_of,
    trial_answer,
)
from serve_apps.kit.auth import SignedIn
from serve_apps.kit.call import FromCall
from serve_apps.kit.pagination import Limit10, Limit50, Offset
from train.phases import catalogue
from train.runs import Run

router = APIRouter(prefix="/v1/models", route_class=VillageRoute)

TAR = "application/x-tar"


def estimate(run: Run) -> str:
    """How long such phases took here lately, by their size; `unknown` where one of them has not run here yet."""
    seconds = [stage.expected_seconds for stage in run.stages]
    known = [each for each in seconds if each is not None]
    return in_words(sum(known)) or "unknown" if len(known) == len(seconds) else "unknown"


def wanted(body: TrainRequest) -> list[tuple[str, dict[str, Any]]]:
    """The phases and their parameters. Raises `Invalid`."""
    if bool(body.phase_name) == bool(body.phases):
        raise Invalid("either phase_name or phases", field="phase_name")
    sizes = {"max_steps": body.max_steps, "batch_size": body.batch_size}
    common = body.parameters | {name: value for name, value in sizes.items() if value is not None}
    if body.phase_name:
        return [(body.phase_name, common)]
    return catalogue.shared([(each.phase_name, each.parameters) for each in body.phases], common)


@router.post("/train", responses={404: {}, 501: {}})
async def train(body: TrainRequest, who: SignedIn, core: FromCore, call: FromCall, request: Request) -> TrainingStarted:
    """Start a training run; its progress comes over `/ws`."""
    if not body.real_training:
        raise Invalid("there is only real training here", field="real_training", allowed_values=[True])
    run = await core.forge.start(who, wanted(body), model_name=body.model_name)
    count = len(run.stages)
    call.message = f"Training started for {f'phase {run.phase}' if count == 1 else f'{count} phases'}"
    return TrainingStarted(
        task_id=run.run_id,
        model_id=run.model_id,
        phase=body.phase_name or run.phase,
        status="started",
        real_training=True,
        user_id=run.owner,
        estimated_duration=estimate(run),
        progress_url=str(request.base_url.replace(scheme="wss" if request.url.scheme == "https" else "ws")) + "ws",
    )


@router.get("/train/phases", response_description="Phases retrieved")
async def list_phases(who: SignedIn) -> PhaseList:
    """What can be trained: every phase with its parameters and defaults, and the pipelines made of them."""
    return PhaseList(
        phases=[phase_answer(entry) for entry in catalogue.PHASES],
        pipelines={name: [phase for phase, _ in catalogue.pipeline(name)] for name in catalogue.pipelines()},
    )


@router.get("/train", response_description="Training runs retrieved")
async def list_runs(
    who: SignedIn, core: FromCore, limit: Limit10 = 10, offset: Offset = 0,
    status: Literal["queued", "training", "completed", "failed", "cancelled", "all"] = "all",
) -> RunList:  # fmt: skip
    """The caller's runs, newest first."""
    state = next((state.value for state, word in WORD.items() if word == status), "any")
    page = await core.forge.page(who, state, offset, limit)
    return RunList(runs=[status_of(run) for run in page.items], total_count=page.total, user_id=who.owner)


@router.get("/train/{task_id}/trials", response_description="Trials retrieved")
async def list_trials(
    task_id: str, who: SignedIn, core: FromCore, limit: Limit50 = 50, offset: Offset = 0,
    status: Literal["running", "completed", "stopped", "failed", "all"] = "all",
) -> TrialList:  # fmt: skip
    """What the run's searches tried, in order: candidates of evomerge and adas, points of a parameter search."""
    page = await core.forge.trials(who, task_id, "any" if status == "all" else status, offset, limit)
    return TrialList(task_id=task_id, trials=[trial_answer(trial) for trial in page.items], total_count=page.total)


@router.get("/train/{task_id}/curve", response_description="Loss curves retrieved")
async def loss_curves(task_id: str, who: SignedIn, core: FromCore) -> Curves:
    """Every step's loss, and the held-out measurements, of each phase that has trained so far."""
    return Curves(task_id=task_id, curves=[Curve(**curve) for curve in await core.forge.curves(who, task_id)])


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


@router.post("/train/{task_id}/resume", response_description="Training resumed")
async def resume_training(task_id: str, who: SignedIn, core: FromCore) -> RunStatus:
    """Take up a failed or cancelled run again, from its last checkpoint and with its finished phases."""
    return status_of(await core.forge.resume(who, task_id))


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
