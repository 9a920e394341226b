"""How many training processes there are, on what, and how they share a model. Pure; Ray Train is told by the shell."""

from collections.abc import Mapping
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import Invalid
from cluster.settings import ROOT

SCALES = ROOT / "configs" / "scale"
SCRAP_OF_A_CPU = 0.01
WEIGHTS_PER_THREAD = 3_000_000


class Scale(BaseModel):
    """A file of `configs/scale`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int = Field(1, ge=0)  # training processes; 0: as many as the cluster has GPUs, or else one
    least_workers: int = Field(0, ge=0)  # with how few it goes on when nodes are lost; 0: with all or not at all
    gpus_per_worker: float = Field(0, ge=0)
    cpus_per_worker: float = Field(1, ge=0)
    strategy: Literal["ddp", "fsdp"] = "ddp"  # every worker has the whole model, or its part of it (FSDP2)
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"


def names() -> list[str]:
    """The scales there are, besides `auto`."""
    return sorted(path.stem for path in SCALES.glob("*.yaml"))


def known(name: str) -> Scale:
    """The scale of that name. Raises `Invalid`."""
    if name not in names():
        raise Invalid(f"no scale {name}", field="scale", value=name, allowed_values=["auto", *names()])
    read: dict[str, Any] = yaml.safe_load((SCALES / f"{name}.yaml").read_text()) or {}
    try:
        return Scale.model_validate(read)
    except ValidationError as error:
        raise Invalid(f"configs/scale/{name}.yaml: {error.errors()[0]['msg']}", field="scale", value=name) from error


def suggested(resources: Mapping[str, float], nodes_with_gpu: int) -> str:
    """The scale that `auto` is on a cluster with these resources."""
    gpus = int(resources.get("GPU", 0))
    if gpus == 0:
        return "cpu"
    if gpus == 1:
        return "gpu"
    return "gpu8" if nodes_with_gpu == 1 else "fsdp"


def threads(asked: int, cores: int, weights: int) -> int:
    """Threads of a training loop on a CPU; `asked`, where that is not 0.

    Matrices of a few hundred rows are done before a second thread has woken up: with 1.07 million weights a step took
    150 to 180 ms with two threads that wait passively and 100 to 135 with one; with 3 million two were a fifth faster
    (docs/log.md).
    """
    return asked or max(1, min(cores, weights // WEIGHTS_PER_THREAD))


def fitted(scale: Scale, wanted: int, resources: Mapping[str, float], free: Mapping[str, float]) -> Scale:
    """The scale as this cluster can have it. `wanted` workers, where that is not 0, are what the caller asked for.

    On a CPU a worker reserves a CPU where one is free, else a scrap of one, since replicas may hold them all: what is
    reserved decides where a worker is placed, not how fast it is. Raises `Invalid` for GPUs that are not there.
    """
    gpus = int(resources.get("GPU", 0))
    if scale.gpus_per_worker:
        fitting = int(gpus / scale.gpus_per_worker)
        workers = wanted or min(scale.workers or fitting, fitting)
        if not fitting or wanted > fitting:
            raise Invalid(
                f"{max(1, wanted)} workers want {scale.gpus_per_worker:g} GPU each, the cluster has {gpus}",
                field="workers" if wanted else "scale",
            )
        cores = min(scale.cpus_per_worker, resources.get("CPU", 0) / workers)
    else:
        workers = wanted or scale.workers or 1
        cores = scale.cpus_per_worker if free.get("CPU", 0) >= workers * scale.cpus_per_worker else SCRAP_OF_A_CPU
    least = min(scale.least_workers, workers)
    return scale.model_copy(update={"workers": workers, "least_workers": least, "cpus_per_worker": cores})
