"""Models: their records, and where their folders lie. A model is made once and never changes."""

import hashlib
import json
import shutil
from datetime import datetime
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from cluster.clock import Clock
from cluster.events import Event
from cluster.settings import ROOT
from cluster.store import Index, Record, Store
from train.manifest import folder_digest
from train.runs import Run, RunState

PUBLIC = "public"


class ModelState(StrEnum):
    """A model exists as a record from the moment its training is asked for."""

    TRAINING = "training"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


def _sets(model: "Model") -> list[tuple[str, ...]]:
    scopes = ("all", PUBLIC if model.public else model.owner)
    return list(product(scopes, ("any", model.state), ("any", *model.phases_completed)))


class Model(Record):
    """A model of the village: a Hugging Face folder under `path` once it is completed."""

    kind: ClassVar[str] = "model"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index("created", lambda model: model.created_at.timestamp(), _sets),
        Index("name", lambda model: model.created_at.timestamp(), lambda model: [(model.name,)]),
    )

    model_id: str
    name: str
    owner: str
    public: bool = False
    state: ModelState = ModelState.TRAINING
    phases_completed: tuple[str, ...] = ()
    path: str
    digest: str = ""  # SHA-256 over the folder's sorted file names and contents
    size_bytes: int = 0
    parameters: int = 0
    context_length: int = 0  # tokens
    metrics: dict[str, float] = {}
    lineage: dict[str, Any] = {}
    error: str = ""  # why there is no model
    cause: str = ""
    created_at: datetime
    completed_at: datetime | None = None


def expected(run: Run, home: Path) -> Model:
    """The record of a model that is still to be made."""
    return Model(
        model_id=run.model_id, name=run.model_name, owner=run.owner, public=run.public,
        path=str(home / "models" / run.model_id), created_at=run.created_at,
    )  # fmt: skip


def completed(model: Model, at: datetime) -> Model:
    """The record with what its folder says. Reads and digests every file."""
    if model.state is ModelState.COMPLETED:
        return model
    folder = Path(model.path)
    told = json.loads((folder / "training.json").read_text())
    update = {
        "state": ModelState.COMPLETED, "phases_completed": tuple(told["phases"]), "digest": folder_digest(folder),
        "size_bytes": sum(path.stat().st_size for path in folder.iterdir()), "parameters": told["parameters"],
        "context_length": told["context_length"], "metrics": told["metrics"], "lineage": told["lineage"],
        "completed_at": at,
    }  # fmt: skip
    return model.model_copy(update=update)


def expansion(home: Path, digest: str) -> Path:
    """Where the chat keeps a compressed model of that digest in expanded form."""
    return home / "cache" / "models" / digest


def write_model(home: Path, run: Run, bases: tuple[Path, ...]) -> None:
    """Make the run's model folder of what its last stage stands at; a folder that is there stays."""
    from train.model.checkpoint import publish, write_json
    from train.model.learner import load
    from train.stage import standing, told

    here = standing(home, run, len(run.stages), bases)
    assert here.model is not None
    folder, source = home / "models" / run.model_id, here.model

    def write(partial: Path) -> None:
        for path in filter(Path.is_file, source.iterdir()):
            shutil.copyfile(path, partial / path.name)
        write_json(partial / "training.json", told(run, home) | described(run, home, bases, load(source)))

    publish(folder, write)


def described(run: Run, home: Path, bases: tuple[Path, ...], learner: Any) -> dict[str, Any]:
    """The rest of `training.json`: size, what was measured last, and where all of it comes from."""
    import torch

    from train.stage import ended

    outcomes = [outcome for number in range(len(run.stages)) if (outcome := ended(home, run, number))]
    measured = {name: value for outcome in outcomes for name, value in outcome.metrics.items()}
    kept = [outcome for outcome in outcomes if outcome.verdict.outcome == "pass"]
    last = (kept or outcomes)[-1].after
    measured |= {
        "held_out_loss_before": outcomes[0].before.loss, "held_out_loss": last.loss, "perplexity": last.perplexity,
        "accuracy_before": outcomes[0].before.accuracy, "accuracy": last.accuracy, "bits_per_byte": last.bits_per_byte,
    }  # fmt: skip
    data = home / "runs" / run.run_id / "data" / "digest"
    return {
        "parameters": learner.parameters, "context_length": learner.context, "metrics": measured,
        "lineage": {
            "run_id": run.run_id, "seeds": [stage.config["seed"] for stage in run.stages],
            "data_digest": data.read_text(), "base_models": list(run.stages[0].config["base_models"]),
            "parents": [folder_digest(base) for base in bases], "tokenizer": learner.tokenizer_digest,
            "code": code_version(ROOT), "torch": torch.__version__,
        },
    }  # fmt: skip


def code_version(root: Path) -> str:
    """SHA-256 over the training code: it, and not a version number, decides what the same seed gives."""
    whole = hashlib.sha256()
    for path in sorted((root / "train").rglob("*.py")):
        whole.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()


class Registry:
    """The models' records. Every method may be repeated without a second effect."""

    def __init__(self, store: Store, home: Path, clock: Clock) -> None:
        self.store, self.home, self.clock = store, home, clock

    async def expect(self, run: Run) -> Model:
        """Make the record of the run's model, unless it is there."""
        return await self.store.upsert(expected(run, self.home), lambda model: model)

    async def expect_again(self, run: Run) -> Model:
        """The run is taken up again: its model, which was given up, is in training once more."""

        def step(model: Model) -> Model:
            ended = model.state in (ModelState.FAILED, ModelState.CANCELLED)
            update = {"state": ModelState.TRAINING, "error": "", "cause": ""}
            return model.model_copy(update=update) if ended else model

        return await self.store.upsert(expected(run, self.home), step)

    async def register(self, run: Run) -> Model:
        """Complete the record from the model's folder, once."""
        at = self.clock()
        done = completed(expected(run, self.home), at)

        def step(model: Model) -> Model:
            return model if model.state is ModelState.COMPLETED else done

        def event(before: Model, model: Model) -> Event:
            data = {"name": model.name, "digest": model.digest, "run_id": run.run_id}
            return Event(kind="model.created", subject=model.model_id, owner=model.owner, at=at, data=data)

        return await self.store.upsert(expected(run, self.home), step, event)

    async def give_up(self, run: Run) -> Model:
        """The run ended without a model."""
        state = ModelState.CANCELLED if run.state is RunState.CANCELLED else ModelState.FAILED

        def step(model: Model) -> Model:
            update = {"state": state, "error": run.error, "cause": run.cause}
            return model if model.state is not ModelState.TRAINING else model.model_copy(update=update)

        return await self.store.upsert(expected(run, self.home), step)
