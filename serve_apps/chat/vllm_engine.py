"""The one real engine: vLLM in this process's care, a model loaded at its first request and unloaded for another.

Everything here runs on one event loop; what blocks (loading, unloading) runs in a thread under one lock, because two
loads at once would each believe that the memory is theirs.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cluster.errors import InsufficientResources, Unavailable, VillageError
from serve_apps.chat.engine import Delta, Finish, Loaded, ModelRef, Sampling, Turn
from serve_apps.chat.expansion import servable
from serve_apps.chat.residency import leaving
from train.causes import Failed

if TYPE_CHECKING:
    from serve_apps.chat.vllm_model import VllmModel

log = structlog.get_logger()
MB = 1024 * 1024


@dataclass(eq=False)
class Slot:
    """A model that is in memory or on its way there."""

    model: ModelRef
    begun: float
    used: float
    loading: "asyncio.Task[VllmModel]"
    holders: int = 0  # requests that run or wait for the load; such a slot is never unloaded
    memory_mb: float = 0.0

    @property
    def engine(self) -> "VllmModel | None":
        """The model once it is loaded."""
        done = self.loading.done() and not self.loading.cancelled() and self.loading.exception() is None
        return self.loading.result() if done else None


class VllmEngine:
    """`ChatEngine` over vLLM; `memory_mb` is what its models may hold together, each with a cache of `kv_mb`.

    Compressed models are expanded under `home`.
    """

    def __init__(self, memory_mb: int, kv_mb: int, threads: int = 0, home: Path = Path(".village")) -> None:
        self.budget_mb, self.kv_mb, self.threads, self.home = memory_mb, kv_mb, threads, home
        self._slots: dict[str, Slot] = {}
        self._lock = asyncio.Lock()
        self._overhead_mb = 0.0  # of an engine beyond weights and cache: measured at each load, 0 before the first
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def progress(self) -> dict[str, float]:
        """Seconds that each model now being loaded has taken so far."""
        now = asyncio.get_running_loop().time()
        loading = (slot for slot in self._slots.values() if not slot.loading.done())
        return {slot.model.model_id: now - slot.begun for slot in loading}

    def loaded(self) -> list[Loaded]:
        """What is in memory."""
        now = asyncio.get_running_loop().time()
        return [
            Loaded(
                slot.model.key, slot.model.model_id, slot.model.name, round(slot.memory_mb, 1),
                max(engine.running, slot.holders), engine.context, now - slot.used, engine.pids,
            )
            for slot in self._slots.values() if (engine := slot.engine) is not None and not engine.dead
        ]  # fmt: skip

    async def generate(
        self, model: ModelRef, messages: Sequence[Turn], sampling: Sampling
    ) -> AsyncGenerator[Delta | Finish, None]:
        """The reply; loads the model first where it is not in memory. See `ChatEngine`."""
        async with self._held(model) as engine, aclosing(engine.generate(messages, sampling)) as steps:
            async for step in steps:
                yield step

    async def load(self, model: ModelRef) -> Loaded:
        """Have it in memory before its first request."""
        async with self._held(model):
            pass
        return next(each for each in self.loaded() if each.key == model.key)

    async def close(self) -> None:
        """Unload everything."""
        slots, self._slots = list(self._slots.values()), {}
        for slot in slots:
            slot.loading.cancel()
        await asyncio.gather(*(self._stop(slot) for slot in slots), *self._closing, return_exceptions=True)

    @asynccontextmanager
    async def _held(self, model: ModelRef) -> AsyncIterator["VllmModel"]:
        slot = self._slot(model)
        slot.holders += 1
        try:
            # Shielded: the one who asked first may go while others wait for the same load.
            engine = await asyncio.shield(slot.loading)
            yield engine
        finally:
            slot.holders -= 1
            slot.used = asyncio.get_running_loop().time()
            if slot.engine is not None and slot.engine.dead:
                self._drop(slot)

    def _slot(self, model: ModelRef) -> Slot:
        slot = self._slots.get(model.key)
        if slot is not None and slot.engine is not None and slot.engine.dead:
            self._drop(slot)
            slot = None
        if slot is None:
            now = asyncio.get_running_loop().time()
            slot = self._slots[model.key] = Slot(model, now, now, asyncio.create_task(self._load(model)))
            slot.loading.add_done_callback(lambda task, slot=slot: self._loaded(slot, task))
        return slot

    def _loaded(self, slot: Slot, task: "asyncio.Task[VllmModel]") -> None:
        # A load that failed leaves no trace: the next request tries again.
        if (task.cancelled() or task.exception() is not None) and self._slots.get(slot.model.key) is slot:
            del self._slots[slot.model.key]

    def _drop(self, slot: Slot) -> None:
        """Take a dead one off the list at once, and clean up after it behind the scenes."""
        if self._slots.get(slot.model.key) is slot:
            del self._slots[slot.model.key]
            task = asyncio.create_task(self._stop(slot))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _stop(self, slot: Slot) -> None:
        try:
            engine = await slot.loading
        except (VillageError, asyncio.CancelledError):
            return
        await asyncio.to_thread(engine.stop)
        log.info("model unloaded", model_id=slot.model.model_id, memory_mb=round(slot.memory_mb))

    async def _load(self, model: ModelRef) -> "VllmModel":
        async with self._lock:
            try:
                model = await asyncio.to_thread(servable, model, self.home)
            except Failed as error:
                raise Unavailable(
                    f"the model {model.name} could not be loaded: {error.message}", component="chat",
                    model_id=model.model_id,
                ) from error  # fmt: skip
            await self._make_room(model, model.size_bytes / MB + self.kv_mb + self._overhead_mb)
            log.info("model loading", model_id=model.model_id, path=model.path)
            try:
                engine = await asyncio.to_thread(_start, model, self.kv_mb, self.threads)
            except Exception as error:  # vLLM raises whatever went wrong inside: a bad file, a missing architecture
                log.exception("model did not load", model_id=model.model_id)
                raise Unavailable(
                    f"the model {model.name} could not be loaded: {error}", component="chat", model_id=model.model_id
                ) from error
            memory_mb = await asyncio.to_thread(engine.memory_mb)
            self._overhead_mb = max(0.0, memory_mb - model.size_bytes / MB - self.kv_mb)
            try:
                await self._make_room(model, memory_mb)
            except InsufficientResources:
                await asyncio.to_thread(engine.stop)
                raise
            if (slot := self._slots.get(model.key)) is not None:
                slot.memory_mb = memory_mb
            log.info("model loaded", model_id=model.model_id, memory_mb=round(memory_mb), context=engine.context)
            return engine

    async def _make_room(self, model: ModelRef, need_mb: float) -> None:
        others = [each for each in self.loaded() if each.key != model.key]
        gone = leaving(others, need_mb, self.budget_mb)
        if gone is None:
            raise InsufficientResources(
                f"the model {model.name} needs {need_mb:.0f} MB; {self.budget_mb} MB are for models, and those that "
                f"are busy hold {sum(each.memory_mb for each in others if each.running):.0f} MB",
                component="chat", need_mb=round(need_mb), budget_mb=self.budget_mb,
            )  # fmt: skip
        # Off the list all at once: while one is being stopped, nobody may begin a request on the next.
        for slot in [self._slots.pop(key) for key in gone]:
            await self._stop(slot)


def _start(model: ModelRef, kv_mb: int, threads: int) -> "VllmModel":
    from serve_apps.chat.vllm_model import VllmModel  # seconds of imports, and not before the first load

    return VllmModel.start(model, kv_mb, threads)
