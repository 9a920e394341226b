"""What chat asks of an engine, in typed values. One engine runs vLLM, another calls an OpenAI-compatible server."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Role = Literal["system", "user", "assistant", "tool"]
Reason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A servable model: `path` is a Hugging Face checkpoint's folder, or `openai:URL` for one that runs elsewhere."""

    model_id: str
    name: str
    path: str
    digest: str = ""  # of the content: another digest is another model
    context_length: int = 0  # tokens; 0 means what the checkpoint says
    size_bytes: int = 0
    owner: str = "village"
    created_at: float = 0.0  # seconds since 1970

    @property
    def key(self) -> str:
        """What tells one content from another: a model that was trained further keeps its id."""
        return f"{self.model_id}@{self.digest}"

    @property
    def version(self) -> str:
        """What `model_version` shows: the head of the digest."""
        return self.digest.removeprefix("sha256:")[:12]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a prompt."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. `max_tokens` None means as many as the context holds."""

    temperature: float = 0.7
    max_tokens: int | None = None
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    ignore_eos: bool = False
    logprobs: int | None = None  # alternatives per position; 0 gives the chosen token's alone
    measure: bool = False  # whether `Finish.mean_probability` is wanted: it costs a tenth of the speed
    stream: bool = True  # False: one Delta at the end where that can be, which saves the work of the others
    json_schema: dict[str, Any] | None = field(default=None, hash=False)
    json_object: bool = False  # any JSON document


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The natural logarithm of a token's probability under the model, before temperature."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step, or several that piled up, added."""

    text: str
    token_ids: Sequence[int]
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """The last value of a stream. Token counts are the engine's own."""

    reason: Reason
    prompt_tokens: int
    completion_tokens: int
    mean_probability: float | None = None  # of the chosen tokens; None where it was not measured
    dropped_turns: int = 0  # oldest messages that the context had no room for
    max_tokens: int | None = None  # what the request's own figure came down to, where the context was shorter
    cached_tokens: int = 0  # of the prompt, those that the engine still had from another request
    thought_tokens: int = 0  # of the completion, those of thoughts, which nobody is shown


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory."""

    key: str
    model_id: str
    name: str
    memory_mb: float  # measured
    running: int  # requests
    context_length: int
    idle_seconds: float
    pids: tuple[int, ...] = ()


class ChatEngine(Protocol):
    """Tokens from a model.

    `generate` yields Deltas and then one Finish; closing the iterator aborts the request. Raises `Invalid` for a
    request that the model cannot take, `InsufficientResources` when the model does not fit beside those that are busy,
    and `Unavailable` when the engine died; it never hangs on a dead one.
    """

    def generate(
        self, model: ModelRef, messages: Sequence[Turn], sampling: Sampling
    ) -> AsyncGenerator[Delta | Finish, None]:
        """The reply to `messages`."""
        ...

    def loaded(self) -> list[Loaded]:
        """What is in memory now."""
        ...

    @property
    def progress(self) -> dict[str, float]:
        """Seconds that each model now being loaded has taken so far, by model id."""
        ...

    async def close(self) -> None:
        """Give all memory back."""
        ...
