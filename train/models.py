"""Models as their users see them: page, get by id or name, download, delete."""

import asyncio
import shutil
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

from cluster.clock import Clock
from cluster.errors import Conflict, ModelNotReady, NotFound, TrainingFailed
from cluster.events import Event
from cluster.identity.model import Principal
from cluster.store import Page, Store
from train.registry import PUBLIC, Model, ModelState, expansion

PIECE = 1 << 20  # bytes of a download at once


class Models:
    """The registry for callers: their own models and the public ones; admins see all."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store, self.clock = store, clock

    async def page(
        self, who: Principal, status: str = "any", phase: str = "any", limit: int = 10, offset: int = 0
    ) -> Page[Model]:
        """Models newest first; `status` is a `ModelState` or any, `phase` one that the model has completed."""
        if who.is_admin:
            return await self.store.page(Model, "created", "all", status, phase, offset=offset, limit=limit)
        pages = [
            await self.store.page(Model, "created", scope, status, phase, limit=offset + limit)
            for scope in (who.owner, PUBLIC)
        ]
        both = sorted(
            (model for page in pages for model in page.items), key=lambda model: model.created_at, reverse=True
        )
        return Page(both[offset : offset + limit], sum(page.total for page in pages))

    async def get(self, who: Principal, name: str) -> Model:
        """The model of that id, or the newest completed one of that name: the caller's own first, then a public one.

        Raises `NotFound`.
        """
        model = await self.store.find(Model, name)
        if model is not None and sees(who, model):
            return model
        ids = await self.store.ids(Model, "name", name, newest_first=True)
        found = [model for model in await self.store.many(Model, ids) if model.state is ModelState.COMPLETED]
        for good in (lambda m: m.owner == who.owner, lambda m: m.public, lambda m: sees(who, m)):
            for candidate in found:
                if good(candidate):
                    return candidate
        raise NotFound(f"no model {name}", model_id=name)

    async def archive(self, who: Principal, name: str) -> AsyncIterator[bytes]:
        """The model's folder as a tar, piece by piece; equal models give equal bytes.

        Raises `NotFound`, `ModelNotReady`, `TrainingFailed`.
        """
        model = await self.get(who, name)
        refuse_unready(model)
        return _tar(Path(model.path), model.model_id)

    async def delete(self, who: Principal, name: str) -> Model:
        """Remove record and folder. Raises `NotFound`, also for another's public model, and `Conflict` in training."""
        model = await self.get(who, name)
        if not who.sees(model.owner):
            raise NotFound(f"no model {name}", model_id=name)
        if model.state is ModelState.TRAINING:
            raise Conflict("the model is in training; cancel its run", model_id=model.model_id)
        gone = Event(
            kind="model.deleted", subject=model.model_id, owner=model.owner, at=self.clock(), data={"name": model.name}
        )  # fmt: skip
        await self.store.delete(Model, model.model_id, gone)
        # The record went first: a folder that a crash leaves behind is unused space, a record without folder a lie.
        await asyncio.to_thread(shutil.rmtree, model.path, True)
        if model.digest:
            home = Path(model.path).parents[1]
            await asyncio.to_thread(shutil.rmtree, expansion(home, model.digest), True)
        return model


def refuse_failed(model: Model) -> None:
    """Raises `TrainingFailed` for a model that will never be there."""
    if model.state in (ModelState.FAILED, ModelState.CANCELLED):
        why = f": {model.error}" if model.error else ""
        raise TrainingFailed(
            f"the training of {model.model_id} is {model.state}{why}",
            model_id=model.model_id, status=model.state, cause=model.cause,
        )  # fmt: skip


def refuse_unready(model: Model) -> None:
    """Raises `TrainingFailed`, or `ModelNotReady` for a model that may still come."""
    refuse_failed(model)
    if model.state is not ModelState.COMPLETED:
        raise ModelNotReady(f"model {model.model_id} is {model.state}", model_id=model.model_id, status=model.state)


def sees(who: Principal, model: Model) -> bool:
    """Whether the model exists for this caller."""
    return model.public or who.sees(model.owner)


async def _tar(folder: Path, prefix: str) -> AsyncIterator[bytes]:
    for path in await asyncio.to_thread(lambda: sorted(folder.iterdir())):
        entry = tarfile.TarInfo(f"{prefix}/{path.name}")
        entry.size, entry.mode = path.stat().st_size, 0o644
        yield entry.tobuf(tarfile.PAX_FORMAT)
        with path.open("rb") as file:
            while piece := await asyncio.to_thread(file.read, PIECE):
                yield piece
        yield bytes(-entry.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)
