"""Chat: which model, which conversation, what was said and what it cost."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from cluster.clock import Clock
from cluster.errors import ModelNotReady, NotFound
from cluster.events.model import Event
from cluster.identity.model import Principal
from cluster.ids import new_id
from cluster.store import Page, Store
from serve_apps.chat.engine import ChatEngine, Delta, Finish, ModelRef, Reason, Sampling, Turn
from serve_apps.chat.model import Conversation, Message, said
from train.models import Models, refuse_failed
from train.registry import Model, ModelState
from train.runs import Run


@dataclass(frozen=True)
class Reply:
    """A finished answer. `confidence` is the mean probability of its tokens; None where it has none."""

    model: ModelRef
    conversation_id: str
    text: str
    reason: Reason
    prompt_tokens: int
    completion_tokens: int
    inference_time_ms: float
    confidence: float | None
    dropped_turns: int = 0
    max_tokens: int | None = None


class Chat:
    """Conversations over an engine. `default` is a registry name unless `configured` gives the model itself."""

    def __init__(
        self,
        store: Store,
        models: Models,
        engine: ChatEngine,
        clock: Clock,
        default: str = "seedling",
        configured: ModelRef | None = None,
    ) -> None:
        self.store, self.models, self.engine, self.clock = store, models, engine, clock
        self.default, self.configured = default, configured
        self._storing: set[asyncio.Task[None]] = set()

    async def model(self, who: Principal, wanted: str = "") -> ModelRef:
        """The model of this id or name; the default one without.

        Raises `NotFound`, `TrainingFailed`, or `ModelNotReady`: with its progress for one in training, and for a
        default not yet begun.
        """
        wanted = wanted if wanted not in ("", "default") else ""
        own = self.configured
        if own is not None and wanted in ("", own.model_id, own.name):
            return own
        name = wanted or self.default
        try:
            record = await self.models.get(who, name)
        except NotFound:
            if name != self.default:
                raise
            raise await self._not_ready(name, name) from None
        refuse_failed(record)
        if record.state != ModelState.COMPLETED:
            raise await self._not_ready(record.model_id, record.name)
        return as_ref(record)

    async def _not_ready(self, wanted: str, name: str) -> ModelNotReady:
        runs = await self.store.many(Run, await self.store.ids(Run, "unfinished", newest_first=True))
        run = next((run for run in runs if wanted in (run.model_id, run.model_name)), None)
        if run is None:
            return ModelNotReady(f"the model {name} does not exist yet, and nothing is making it", model=name)
        return ModelNotReady(
            f"the model {name} is still in training",
            model=name, task_id=run.run_id, status=run.state, phase=run.phase, progress=run.progress,
            remaining_seconds=run.remaining_seconds, retry_after_seconds=round(run.remaining_seconds or 5),
        )  # fmt: skip

    async def listed(self, who: Principal) -> list[ModelRef]:
        """Models that `who` may chat with: the configured one first, then the registry's newest hundred."""
        page = await self.models.page(who, ModelState.COMPLETED, limit=100)
        return [*filter(None, [self.configured]), *(as_ref(record) for record in page.items)]

    async def complete(
        self, who: Principal, wanted: str, messages: Sequence[Turn], sampling: Sampling
    ) -> tuple[ModelRef, AsyncGenerator[Delta | Finish, None]]:
        """A reply that nobody keeps: the model, and its tokens."""
        model = await self.model(who, wanted)
        return model, self.engine.generate(model, messages, sampling)

    async def converse(
        self, who: Principal, wanted: str, message: str, conversation_id: str = "", sampling: Sampling | None = None
    ) -> AsyncGenerator[Delta | Reply, None]:
        """Deltas, then the Reply; the exchange is stored before the Reply is given.

        Closing the iterator early stores what there is, marked incomplete. An id that is nobody's begins a
        conversation of that id; somebody else's raises `NotFound`.
        """
        sampling = replace(sampling or Sampling(), measure=True)
        model = await self.model(who, wanted)
        before = await self._opened(who, conversation_id, model)
        asked = Message(role="user", content=message, at=self.clock())
        begun, took_ms, parts, tokens = time.perf_counter(), 0.0, [], 0
        finish: Finish | None = None
        steps = self.engine.generate(model, [*before.turns(), Turn("user", message)], sampling)
        try:
            async with aclosing(steps):
                async for step in steps:
                    if isinstance(step, Finish):
                        finish, took_ms = step, (time.perf_counter() - begun) * 1000
                        break
                    parts.append(step.text)
                    tokens += len(step.token_ids)
                    yield step
        finally:
            text = "".join(parts)
            if finish is not None or text:
                tokens = finish.completion_tokens if finish else tokens
                answer = Message(role="assistant", content=text, at=self.clock(), tokens=tokens, complete=bool(finish))
                await self._kept(before, model, asked, answer)
        assert finish is not None, "an engine that ends without a Finish raises"
        yield Reply(
            model, before.conversation_id, text, finish.reason, finish.prompt_tokens, finish.completion_tokens,
            took_ms, finish.mean_probability, finish.dropped_turns, finish.max_tokens,
        )  # fmt: skip

    async def conversation(self, who: Principal, conversation_id: str) -> Conversation:
        """One that `who` may see. Raises `NotFound`."""
        found = await self.store.find(Conversation, conversation_id)
        if found is None or not who.sees(found.owner):
            raise NotFound(f"no conversation {conversation_id}", id=conversation_id)
        return found

    async def conversations(self, who: Principal, offset: int = 0, limit: int = 50) -> Page[Conversation]:
        """The caller's own, newest first."""
        return await self.store.page(Conversation, "owner", who.owner, offset=offset, limit=limit)

    async def _opened(self, who: Principal, conversation_id: str, model: ModelRef) -> Conversation:
        found = await self.store.find(Conversation, conversation_id) if conversation_id else None
        if found is not None and not who.sees(found.owner):
            raise NotFound(f"no conversation {conversation_id}", id=conversation_id)
        at = self.clock()
        return found or Conversation(
            conversation_id=conversation_id or new_id("conv"), owner=who.owner, model_id=model.model_id,
            created_at=at, updated_at=at,
        )  # fmt: skip

    async def _kept(self, before: Conversation, model: ModelRef, asked: Message, answer: Message) -> None:
        task = asyncio.create_task(self._keep(before, model, asked, answer))
        # A reader who goes away cancels this coroutine; what was said is stored all the same.
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)
        await asyncio.shield(task)

    async def _keep(self, before: Conversation, model: ModelRef, asked: Message, answer: Message) -> None:
        empty = before.model_copy(update={"messages": (), "message_count": 0, "title": ""})

        def step(now: Conversation) -> Conversation:
            if now.owner != before.owner:  # two users chose the same new id at the same time: the first one has it
                raise NotFound(f"no conversation {before.conversation_id}", id=before.conversation_id)
            return said(now, model.model_id, asked, answer)

        def event(_: Conversation, after: Conversation) -> Event:
            data = {
                "conversation_id": after.conversation_id, "model_id": model.model_id,
                "completion_tokens": answer.tokens, "message_count": after.message_count,
            }  # fmt: skip
            kind = "chat.completed" if answer.complete else "chat.interrupted"
            return Event(kind=kind, subject=after.conversation_id, owner=after.owner, at=after.updated_at, data=data)

        await self.store.upsert(empty, step, event)


def as_ref(record: Model) -> ModelRef:
    """A registry record as what the engine loads."""
    return ModelRef(
        record.model_id, record.name, record.path, record.digest, record.context_length, record.size_bytes,
        record.owner, record.created_at.timestamp(),
    )  # fmt: skip
