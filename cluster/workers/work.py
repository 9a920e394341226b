"""What a worker of the village can do: Python callables by capability, named in configs/workers.yaml.

A callable takes the task's input and a `Job`, and returns what JSON can say; what it raises fails the task. Only what
the operator wrote into the configuration runs; a task names a capability, never code.
"""

import importlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field


class Job:
    """A task as its callable sees it. It runs in a thread; everything here may be called from there."""

    def __init__(self, task_id: str, attempt: int, metadata: Mapping[str, Any]) -> None:
        self.task_id, self.attempt, self.metadata = task_id, attempt, metadata
        self.progress_told: tuple[float, str] | None = None
        self._over = threading.Event()

    def progress(self, percent: float, message: str = "") -> None:
        """Say how far it is, 0-100; the worker tells the village about once a second."""
        self.progress_told = (min(100.0, max(0.0, float(percent))), message[:1000])

    @property
    def over(self) -> bool:
        """Whether nobody waits for the result any more: cancelled, or past its time. Whoever goes on is killed."""
        return self._over.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait, for at most so long; whether it is `over`."""
        return self._over.wait(seconds)

    def end(self) -> None:
        """The worker's way to say that it is over."""
        self._over.set()


Work = Callable[[dict[str, Any], Job], Any]


class PoolConfig(BaseModel):
    """configs/workers.yaml, or the file that `VILLAGE_WORKERS_CONFIG` names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent_id: str = "village-workers"
    display_name: str = "Workers of the village"
    workers_min: int = Field(1, ge=0, le=1000)
    workers_max: int = Field(0, ge=0, le=1000)  # 0: as many as the cluster has cores
    tasks_per_worker: int = Field(8, ge=1)  # that wait for each worker before another is started
    idle_seconds: float = Field(60.0, gt=0)  # without anything to do, after which workers beyond the least end
    cpus_per_worker: float = Field(0.0, ge=0)  # what Ray reserves; more than there are makes an autoscaler add nodes
    callables: dict[str, str] = {}  # capability to "package.module:function"


def configured(path: Path) -> PoolConfig:
    """What the file says. Raises `ValueError` where it says something else."""
    return PoolConfig(**(yaml.safe_load(path.read_text()) or {}))


def resolve(callables: Mapping[str, str]) -> dict[str, Work]:
    """The functions behind the names. Raises `ImportError`, `AttributeError` for those that are not there."""
    found: dict[str, Work] = {}
    for capability, name in callables.items():
        module, _, function = name.partition(":")
        found[capability] = getattr(importlib.import_module(module), function)
    return found
