"""Models: their records, and where their folders lie. A model is made once and never changes."""

import json
from datetime import datetime
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from cluster.clock import Clock
from cluster.events import Event
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


class Registry:
    """The models' records. Every method may be repeated without a second effect."""

    def __init__(self, store: Store, home: Path, clock: Clock) -> None:
        self.store, self.home, self.clock = store, home, clock

    async def expect(self, run: Run) -> Model:
        """Make the record of the run's model, unless it is there."""
        return await self.store.upsert(expected(run, self.home), lambda model: model)

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
            return model if model.state is not ModelState.TRAINING else model.model_copy(update={"state": state})

        return await self.store.upsert(expected(run, self.home), step)
