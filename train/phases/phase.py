"""What every phase of the forge is: a typed configuration, work that a training worker does, and a gate."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from train.runs import Run


class PhaseConfig(BaseModel):
    """A phase's parameters; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 42
    workers: int = 1  # training processes; more than one are data parallel
    threads: int = 0  # of each worker; 0: as many as its machine has cores


class Quality(BaseModel):
    """How good a model is on held-out text: nats per token, share of tokens guessed right, tokens measured on."""

    model_config = ConfigDict(frozen=True)

    loss: float
    accuracy: float


class Verdict(BaseModel):
    """Whether a phase's result may be kept, and why."""

    model_config = ConfigDict(frozen=True)

    passed: bool
    reason: str


@dataclass
class Work:
    """What a phase is given in each training worker. Rank 0 alone writes files and reports."""

    run: Run
    home: Path
    root: Path  # the project's own folder
    rank: int
    world: int
    device: Any  # torch.device
    wrap: Callable[[Any], Any]  # makes a module data parallel where there are several workers
    report: Callable[[Any], None]  # Progress, at every step; raises when the run is to end
    note: Callable[..., None]  # note("message", key=value): a line of the run's log

    @property
    def folder(self) -> Path:
        """Where this run keeps what only it needs."""
        return run_folder(self.home, self.run.run_id)

    @property
    def model_folder(self) -> Path:
        """Where the model is to appear."""
        return self.home / "models" / self.run.model_id


def run_folder(home: Path, run_id: str) -> Path:
    """Checkpoints and log of a run."""
    return home / "runs" / run_id


C = TypeVar("C", bound=PhaseConfig)


class Phase(ABC, Generic[C]):
    """One phase. `run` is called in every training worker, again after a crash, and leaves the model's folder."""

    name: ClassVar[str]
    Config: ClassVar[type[PhaseConfig]]

    def __init__(self, config: C) -> None:
        self.config = config

    @property
    @abstractmethod
    def total_steps(self) -> int:
        """How many steps progress is counted in."""

    @abstractmethod
    def check(self) -> None:
        """Raise `Invalid` or `NotBuilt` for a configuration that cannot run, before anything is started."""

    @abstractmethod
    def run(self, work: Work) -> None:
        """Do it. Idempotent: goes on from the newest checkpoint; a model that is there is left alone."""

    @abstractmethod
    def gate(self, before: Quality, after: Quality) -> Verdict:
        """Whether the result may be kept."""
