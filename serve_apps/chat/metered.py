"""A ChatEngine that counts what another one does: tokens, times and ends, by model; and a span for each reply."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cluster import tracing
from cluster.identity.model import SYSTEM
from serve_apps.chat.engine import ChatEngine, Delta, Finish, Loaded, ModelRef, Sampling, Turn

FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 30)
WHOLE = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
OURS = frozenset({"village", SYSTEM.owner})
PRIVATE = "private"


def label_of(model: ModelRef) -> str:
    """The name of a model of the village's own; one word for all those of users, whose names are nobody's business."""
    return model.name if model.owner in OURS else PRIVATE


class Metered:
    """See the module. Its families are in the registry from the start, its samples from the first reply on."""

    def __init__(self, engine: ChatEngine, registry: CollectorRegistry) -> None:
        self.engine, by_model = engine, ("model",)
        self.tokens = Counter(
            "village_chat_tokens", "Tokens read (prompt) and written (completion)", ("model", "kind"), registry=registry
        )
        self.cached = Counter(
            "village_chat_cached_prompt_tokens", "Prompt tokens that the engine had in its prefix cache", by_model,
            registry=registry,
        )  # fmt: skip
        self.replies = Counter(
            "village_chat_replies", "Replies, by how they ended", ("model", "outcome"), registry=registry
        )
        self.running = Gauge("village_chat_running", "Replies under way", registry=registry)
        self.first = Histogram(
            "village_chat_first_token_seconds", "From the request to the first token of a stream", by_model,
            buckets=FIRST_TOKEN, registry=registry,
        )  # fmt: skip
        self.whole = Histogram(
            "village_chat_reply_seconds", "From the request to the end of a reply that was finished", by_model,
            buckets=WHOLE, registry=registry,
        )  # fmt: skip

    async def generate(
        self, model: ModelRef, messages: Sequence[Turn], sampling: Sampling
    ) -> AsyncGenerator[Delta | Finish, None]:
        """See `ChatEngine`."""
        label, begun, waiting, written, outcome = label_of(model), time.perf_counter(), sampling.stream, 0, "aborted"
        span = tracing.begin(
            "chat.generate", **{"gen_ai.request.model": model.name, "village.model_id": model.model_id}
        )
        self.running.inc()
        try:
            async with aclosing(self.engine.generate(model, messages, sampling)) as steps:
                async for step in steps:
                    if isinstance(step, Finish):
                        outcome, written = step.reason, step.completion_tokens
                        self._finished(label, step, time.perf_counter() - begun)
                    else:
                        written += len(step.token_ids)
                        if waiting:
                            waiting = False
                            self.first.labels(label).observe(time.perf_counter() - begun)
                    yield step
        except Exception:
            outcome = "failed"
            raise
        finally:
            self.running.dec()
            self.tokens.labels(label, "completion").inc(written)
            self.replies.labels(label, outcome).inc()
            span.set_attributes({"village.outcome": outcome, "gen_ai.usage.output_tokens": written})
            span.end()

    def _finished(self, label: str, finish: Finish, seconds: float) -> None:
        self.tokens.labels(label, "prompt").inc(finish.prompt_tokens)
        self.cached.labels(label).inc(finish.cached_tokens)
        self.whole.labels(label).observe(seconds)

    def loaded(self) -> list[Loaded]:
        """See `ChatEngine`."""
        return self.engine.loaded()

    @property
    def progress(self) -> dict[str, float]:
        """See `ChatEngine`."""
        return self.engine.progress

    async def close(self) -> None:
        """See `ChatEngine`."""
        await self.engine.close()
