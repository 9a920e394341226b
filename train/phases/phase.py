"""What every phase of the forge is: a typed configuration, work that turns one model folder into another, a gate."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from cluster.hardware import Precision
from train.evaluate.quality import Quality
from train.hyperparameters import SearchConfig
from train.runs import Run
from train.search import Evolve


class PhaseConfig(BaseModel):
    """What every phase takes; unknown parameters are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_models: tuple[str, ...] = ()  # of a run's first phase: registry models, hub ids, or folders (admins)
    datasets: tuple[str, ...] = ()  # of a run's first phase: texts of one's own, beside what the project ships
    held_out: float = Field(0.04, gt=0, lt=0.5)  # share of documents that no step sees
    held_out_tokens: int = Field(8192, ge=256)  # at most so many are measured on
    seed: int = 42
    scale: str = "auto"  # a file of configs/scale, or what the cluster's resources suggest
    workers: int = Field(0, ge=0)  # training processes; 0: as the scale says
    threads: int = Field(0, ge=0)  # of each worker; 0: as many as its machine has cores
    search: SearchConfig | None = None  # several trials with other parameters, of which the best is kept


class TrainedConfig(PhaseConfig):
    """What every phase takes that trains by gradient descent; see `train.loop.LoopConfig`."""

    max_steps: int = Field(300, ge=1, le=1_000_000)  # optimizer steps
    batch_size: int = Field(4, ge=1, le=4096)  # rows of context_length tokens a step, over all workers
    accumulate: int = Field(1, ge=1, le=1024)  # parts that a worker takes its share of a batch in
    context_length: int = Field(512, ge=64, le=8192)  # tokens
    learning_rate: float = Field(1e-3, gt=0, le=1)
    final_learning_rate_ratio: float = Field(0.05, ge=0, le=1)
    warmup_steps: int = Field(30, ge=0)  # at most a tenth of max_steps is used
    weight_decay: float = Field(0.1, ge=0, le=1)
    clip_norm: float = Field(1.0, gt=0)
    grokfast_alpha: float = Field(0.98, ge=0, lt=1)
    grokfast_lamb: float = Field(0.0, ge=0, le=10)
    precision: Precision = "auto"
    mix: dict[str, float] = {}  # how often an epoch takes each source's documents; 1 where none is given
    evaluate_steps: int = Field(0, ge=0)  # held-out loss every so many steps; 0: only before and after
    checkpoint_steps: int = Field(500, ge=1)
    checkpoint_seconds: float = Field(10.0, gt=0)


class Outcome(StrEnum):
    """What a gate decides."""

    PASS = "pass"
    KEEP = "keep"  # not good enough: the run goes on with the model before
    FAIL = "fail"


class Verdict(BaseModel):
    """A gate's decision, and why."""

    model_config = ConfigDict(frozen=True)

    outcome: Outcome
    reason: str


@dataclass
class Work:
    """What a phase is given. With several workers rank 0 alone writes files and reports."""

    run: Run
    number: int  # of the stage
    home: Path
    root: Path  # the project's own folder
    rank: int
    world: int
    device: Any  # torch.device
    wrap: Callable[[Any], Any]  # makes a module data parallel where there are several workers
    report: Callable[[Any], None]  # train.loop.Progress, at every step; raises when the run is to end
    note: Callable[..., None]  # note("message", key=value): a line of the run's log
    base: Path | None = None  # the model folder to begin with; None only for a model from nothing
    siblings: tuple[Path, ...] = ()  # more model folders of the same shape, for merging
    evolve: Evolve | None = None  # evaluates candidates side by side; for phases of place "trials"
    inside: str = ""  # of a trial: its folder within the stage's

    @property
    def folder(self) -> Path:
        """Where this stage keeps what only it needs, and where it leaves its model."""
        return stage_folder(self.home, self.run, self.number) / self.inside

    @property
    def output(self) -> Path:
        """The model folder that the phase is to make, by `train.model.checkpoint.publish`."""
        return self.folder / "model"

    @property
    def sibling_outputs(self) -> Path:
        """A folder for the further model folders that a phase may make: `siblings/0`, `siblings/1`."""
        return self.folder / "siblings"

    @property
    def data(self) -> Path:
        """Where the run's texts lie: the same for all its stages."""
        return run_folder(self.home, self.run.run_id) / "data"


def run_folder(home: Path, run_id: str) -> Path:
    """Checkpoints and log of a run."""
    return home / "runs" / run_id


def stage_folder(home: Path, run: Run, number: int) -> Path:
    """Of one stage: `runs/<run>/0-cognate`."""
    return run_folder(home, run.run_id) / f"{number}-{run.stages[number].phase}"


C = TypeVar("C", bound=PhaseConfig)


class Phase(ABC, Generic[C]):
    """One phase. `run` is called again after a crash, in every training worker or, for place "trials", in the job."""

    name: ClassVar[str]
    Config: ClassVar[type[PhaseConfig]]
    place: ClassVar[Literal["workers", "trials"]] = "workers"
    needs_base: ClassVar[bool] = True

    def __init__(self, config: C) -> None:
        self.config = config

    @property
    @abstractmethod
    def total_steps(self) -> int:
        """How many steps progress is counted in."""

    def check(self) -> None:
        """Raise `Invalid` or `NotBuilt` for a configuration that cannot run, before anything is started."""

    @abstractmethod
    def run(self, work: Work) -> dict[str, float]:
        """Leave a model in `work.output` and return what was measured besides its quality (rank 0's counts).

        Idempotent: goes on from the newest checkpoint in `work.folder`. Raises `train.causes.Failed` for what
        repeating would only repeat, any other error for what another attempt may survive.
        """

    @abstractmethod
    def gate(self, before: Quality, after: Quality, metrics: dict[str, float]) -> Verdict:
        """What becomes of the model. `before` is of the model that the phase began with, on the same held-out text."""
