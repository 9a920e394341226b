"""What OpenAI's clients send, as turns and sampling. Fields that change nothing here are let through."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import Invalid
from serve_apps.chat.engine import Role, Sampling, Turn
from serve_apps.dialects.openai.tools import Tool, ToolCall, offered

ROLES: dict[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
}  # fmt: skip
TokenCount = Annotated[int, Field(ge=1, le=10_000_000)]


class Part(BaseModel):
    """A piece of a message."""

    type: str
    text: str = ""


class ChatMessage(BaseModel):
    """One message; its content is text, or parts that are all text."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = ""
    tool_calls: list[ToolCall] | None = None

    def turn(self) -> Turn:
        """As the engine takes it. Raises `Invalid` for a part that is not text."""
        calls = "".join(call.text for call in self.tool_calls or ()) if self.role == "assistant" else ""
        if self.content is None or isinstance(self.content, str):
            return Turn(ROLES[self.role], (self.content or "") + calls)
        if other := next((part.type for part in self.content if part.type != "text"), None):
            raise Invalid(f"content of type {other} is not supported: the models here read text", field="messages")
        return Turn(ROLES[self.role], "".join(part.text for part in self.content) + calls)


class JsonSchema(BaseModel):
    """The `json_schema` of a response format."""

    name: str = "answer"
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")


class ResponseFormat(BaseModel):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None


class StreamOptions(BaseModel):
    """Whether the stream ends with its usage."""

    include_usage: bool = False


class CompletionRequest(BaseModel):
    """`POST /openai/v1/chat/completions`. `top_k`, `min_p` and `ignore_eos` are vLLM's extensions."""

    model_config = ConfigDict(extra="ignore")

    model: str = ""
    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    n: int | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto"] | None = None
    ignore_eos: bool = False

    def turns(self) -> list[Turn]:
        """The messages. Raises `Invalid`."""
        return offered([message.turn() for message in self.messages], self.offers)

    @property
    def offers(self) -> list[Tool]:
        """The tools that may be called."""
        return [] if self.tool_choice == "none" else self.tools or []

    def sampling(self) -> Sampling:
        """The parameters. Raises `Invalid` for what this server does not do."""
        if self.n not in (None, 1):
            raise Invalid("n must be 1: one choice for each request", field="n")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > 4 or not all(stop):
            raise Invalid("stop takes up to 4 strings, none of them empty", field="stop")
        form = self.response_format or ResponseFormat()
        if form.type == "json_schema" and (form.json_schema is None or not form.json_schema.schema_):
            raise Invalid("response_format of type json_schema needs json_schema.schema", field="response_format")
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            seed=self.seed,
            stop=tuple(stop),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            ignore_eos=self.ignore_eos,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            stream=self.stream,
            json_schema=form.json_schema.schema_ if form.type == "json_schema" and form.json_schema else None,
            json_object=form.type == "json_object",
        )
