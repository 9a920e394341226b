"""Checkpoints on disk: what ranks upload, and the averages that rounds begin with.

`<home>/farm/<task>/round-<n>/rank-<k>.<attempt>.safetensors` and `<home>/farm/<task>/average-<n>.safetensors`. A file
has its name only once it is whole and was checked; which of them counts stands in the records.
"""

import asyncio
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from cluster.clock import Clock, utc_now
from cluster.errors import Forbidden, Invalid, NotFound, StaleAttempt, TaskNotFound, TooLarge
from cluster.farm import averaging, events, holding, machine, tensors
from cluster.farm.averaging import Averaged, Share
from cluster.farm.deciding import Decided, decide
from cluster.farm.model import Client, FarmTask, Rank, rank_id
from cluster.farm.tensors import BadCheckpoint
from cluster.identity.model import Principal
from cluster.store import Store

WRITE_BYTES = 4 << 20
PART = ".part"


class Files:
    """Where the checkpoints lie. Blocks: call it in a thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def task(self, task_id: str) -> Path:
        """The task's folder."""
        if not re.fullmatch(r"task_[0-9a-f]+", task_id):  # ids are made here, and stay so
            raise ValueError(f"no task's id: {task_id!r}")
        return self.folder / task_id

    def upload(self, rank: Rank) -> Path:
        """Of the rank's current attempt."""
        return self.task(rank.task_id) / f"round-{rank.round}" / f"rank-{rank.rank}.{rank.attempt}.safetensors"

    def average(self, task_id: str, number: int) -> Path:
        """That round `number` begins with."""
        return self.task(task_id) / f"average-{number}.safetensors"

    def temporary(self, target: Path) -> Path:
        """A name beside `target` that nobody else uses."""
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.with_name(f"{target.name}.{secrets.token_hex(6)}{PART}")

    def keep(self, part: Path, target: Path) -> None:
        """Give a whole file its name, once its content is on the disk."""
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        part.replace(target)

    def averaged(self, task: FarmTask, shares: list[Share]) -> Averaged:
        """Average a round of the task; the file has its name if anything was averaged."""
        target = self.average(task.task_id, task.round + 1)
        began = machine.begins_with(task, task.round)
        like = self.average(task.task_id, began) if began is not None else None
        part = self.temporary(target)
        try:
            done = averaging.average(shares, part, like if like and like.exists() else None)
            if done.ranks:
                self.keep(part, target)
            return done
        finally:
            part.unlink(missing_ok=True)

    def sweep(self, task: FarmTask) -> None:
        """Remove the uploads of all rounds but the last two, and averages that are not kept."""
        folder = self.task(task.task_id)
        kept = {self.average(task.task_id, number).name for number in task.averages}
        for path in folder.glob("average-*.safetensors"):
            number = int(path.name.removeprefix("average-").removesuffix(".safetensors"))
            if path.name not in kept and number <= task.round:
                path.unlink(missing_ok=True)
        for path in folder.glob("round-*"):
            if int(path.name.removeprefix("round-")) < task.round - 1:
                shutil.rmtree(path, ignore_errors=True)

    def forget(self, task_id: str) -> None:
        """Remove all of the task."""
        shutil.rmtree(self.task(task_id), ignore_errors=True)


class Checkpoints:
    """Uploading and downloading."""

    def __init__(self, store: Store, folder: Path, most_bytes: int, clock: Clock = utc_now) -> None:
        self.store, self.files, self.most_bytes, self.clock = store, Files(folder), most_bytes, clock

    async def upload(
        self, who: Principal, task_id: str, number: int, round_: int | None, client_id: str, told: int | None,
        body: AsyncIterator[bytes],
    ) -> Rank:  # fmt: skip
        """Take the checkpoint of a rank from the client that holds it. `told`: bytes, as its header says.

        Raises `TaskNotFound`, `Forbidden`, `StaleAttempt`, `TooLarge`; `Invalid` for what is no checkpoint, or none of
        this model.
        """
        task, rank = await self._holding(who, task_id, number, round_, client_id)
        if told is not None and told > self.most_bytes:
            raise too_large(self.most_bytes)
        target = self.files.upload(rank)
        part = await asyncio.to_thread(self.files.temporary, target)
        try:
            size = await self._receive(part, body)
            await asyncio.to_thread(self._check, task, part)
            await asyncio.to_thread(self.files.keep, part, target)
        finally:
            await asyncio.to_thread(part.unlink, True)

        def plan(client: Client | None, now: Rank | None, task: FarmTask | None) -> list[Decided]:
            if client is None or now is None or now.attempt != rank.attempt or not holding.belongs(client, now, task):
                raise stale(task_id)
            after = now.model_copy(update={"upload": target.name, "upload_bytes": size})
            event = events.of_rank(after, self.clock(), kind="farm.checkpoint_uploaded", bytes=size)
            return [(client, None), (after, event), (task, None)]

        wanted = [(Client, rank.client_id), (Rank, rank.rank_id), (FarmTask, task_id)]
        decided = await decide(self.store, wanted, plan)
        assert decided is not None
        return decided[1]

    async def _holding(
        self, who: Principal, task_id: str, number: int, round_: int | None, client_id: str
    ) -> tuple[FarmTask, Rank]:
        task = await self.store.find(FarmTask, task_id)
        rank = await self.store.find(Rank, rank_id(task_id, task.round, number)) if task else None
        client = await self.store.find(Client, rank.client_id) if rank else None
        named = await self.store.find(Client, client_id) if client_id else client
        mine = named is not None and named.owner == who.owner
        worked = mine and named is not None and _worked(named, task_id)
        if task is None or task.deleted or not (who.sees(task.owner) or worked):
            raise TaskNotFound(f"no task {task_id}", task_id=task_id)
        if not mine:
            raise Forbidden("a checkpoint comes from the client that holds the rank", client_id=client_id)
        if rank is None or client is None or named != client or round_ not in (None, rank.round):
            raise stale(task_id)
        if not holding.belongs(client, rank, task):
            raise stale(task_id)
        return task, rank

    async def _receive(self, part: Path, body: AsyncIterator[bytes]) -> int:
        size = 0
        with open(part, "wb") as file:  # noqa: ASYNC230  # written to in a thread
            waiting: list[bytes] = []
            held = 0
            async for piece in body:
                size, held = size + len(piece), held + len(piece)
                if size > self.most_bytes:
                    raise too_large(self.most_bytes)
                waiting.append(piece)
                if held >= WRITE_BYTES:
                    await asyncio.to_thread(file.writelines, waiting)
                    waiting, held = [], 0
            await asyncio.to_thread(file.writelines, waiting)
        return size

    def _check(self, task: FarmTask, part: Path) -> None:
        began = machine.begins_with(task, task.round)
        like = self.files.average(task.task_id, began) if began is not None else None
        try:
            checkpoint = tensors.opened(part)
            model = tensors.opened(like) if like is not None and like.exists() else checkpoint
            if wrong := tensors.difference(model, checkpoint):
                raise BadCheckpoint(wrong)
            tensors.check_finite(checkpoint)
        except BadCheckpoint as error:
            raise Invalid(f"the checkpoint is refused: {error}", field="body") from error

    async def average(self, who: Principal, task_id: str, round_: int | None, client_id: str) -> tuple[Path, int]:
        """The model that a round begins with, or the newest; and which that is. Raises `TaskNotFound`, `NotFound`."""
        task = await self._readable(who, task_id, client_id)
        number = machine.begins_with(task, round_)
        path = self.files.average(task_id, number) if number is not None else None
        if path is None or number is None or not await asyncio.to_thread(path.exists):
            raise NotFound("there is no average of it, or it is no longer kept", task_id=task_id, round=round_)
        return path, number

    async def of_rank(self, who: Principal, task_id: str, number: int, round_: int | None, client_id: str) -> Path:
        """What a rank has uploaded in a round, this one if not said. Raises `TaskNotFound`, `NotFound`."""
        task = await self._readable(who, task_id, client_id)
        rank = await self.store.find(Rank, rank_id(task_id, task.round if round_ is None else round_, number))
        path = self.files.upload(rank).with_name(rank.upload) if rank is not None and rank.upload else None
        if path is None or not await asyncio.to_thread(path.exists):
            raise NotFound("the rank has uploaded nothing, or it is no longer kept", task_id=task_id, rank=number)
        return path

    async def _readable(self, who: Principal, task_id: str, client_id: str) -> FarmTask:
        """Its owner reads a task's checkpoints, and the client that holds a rank of it now."""
        task = await self.store.find(FarmTask, task_id)
        allowed = task is not None and not task.deleted and who.sees(task.owner)
        if task is not None and not task.deleted and not allowed and client_id:
            client = await self.store.find(Client, client_id)
            allowed = client is not None and client.owner == who.owner and client.holds.split(".")[0] == task_id
        if task is None or not allowed:
            raise TaskNotFound(f"no task {task_id}", task_id=task_id)
        return task


def _worked(client: Client, task_id: str) -> bool:
    return client.holds.split(".")[0] == task_id or any(past.task_id == task_id for past in client.recent)


def stale(task_id: str) -> StaleAttempt:
    """The error of whoever does not hold the rank, or no longer."""
    return StaleAttempt("the client does not hold this rank of this round, or no longer", task_id=task_id)


def too_large(most: int) -> TooLarge:
    """The error for a checkpoint that is over the limit."""
    return TooLarge(f"a checkpoint has at most {most} bytes", field="body", max_bytes=most)


def share(files: Files, rank: Rank) -> Share | None:
    """What the rank gives to the average; None without an upload."""
    if not rank.upload:
        return None
    return Share(rank.rank, files.upload(rank).with_name(rank.upload), rank.samples)
