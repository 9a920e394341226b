"""AIVillage, chat routes: parse, call the core, render."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from cluster.errors import VillageError
from cluster.identity.model import Principal
from serve_apps.chat.engine import Delta, Sampling
from serve_apps.chat.service import Reply
from serve_apps.chat.stream import DONE, ClientGone, EventStream, while_wanted
from serve_apps.core import FromCore
from serve_apps.dialects.aivillage.envelope import VillageRoute
from serve_apps.dialects.aivillage.errors import CODES
from serve_apps.kit.auth import SignedIn

router = APIRouter(route_class=VillageRoute)

Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]


class Parameters(BaseModel):
    """How the answer is sampled."""

    temperature: float = Field(0.7, ge=0, le=2)
    max_tokens: int = Field(512, ge=1, le=10_000_000)
    top_p: float = Field(0.9, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list, max_length=4)


class ChatRequest(BaseModel):
    """`POST /v1/chat`. No `model_id`: the village's own model answers; no `conversation_id`: a new one begins."""

    message: str = Field(min_length=1, max_length=1_000_000)
    model_id: str = ""
    conversation_id: Id | None = None
    stream: bool = False
    parameters: Parameters = Field(default_factory=lambda: Parameters.model_validate({}))

    def sampling(self) -> Sampling:
        """As the engine takes it."""
        p = self.parameters
        return Sampling(
            p.temperature, p.max_tokens, p.top_p, p.top_k, seed=p.seed, stop=tuple(p.stop), stream=self.stream
        )


@router.post(
    "/v1/chat", response_description="Chat completed successfully", response_model=dict[str, Any],
    responses={200: {"content": {"text/event-stream": {}}}, 404: {}},
)  # fmt: skip
async def chat(body: ChatRequest, request: Request, who: SignedIn, core: FromCore) -> Any:
    """One message of a conversation and its answer, whole or as a stream of events."""
    steps = core.chat.converse(who, body.model_id, body.message, body.conversation_id or "", body.sampling())
    if body.stream:
        return EventStream(events(steps, who), error_event)
    try:
        return await while_wanted(request, whole(steps, who))
    except ClientGone:
        return Response(status_code=499)


def shown(reply: Reply, who: Principal) -> dict[str, Any]:
    """The answer's data; `metadata` says so where messages were left out or the answer cut to fit the context."""
    metadata: dict[str, Any] = {
        "inference_time_ms": round(reply.inference_time_ms, 1),
        "model_version": reply.model.version,
        "confidence_score": reply.confidence,
        "finish_reason": reply.reason,
    }
    if reply.dropped_turns:
        metadata["dropped_messages"] = reply.dropped_turns
    if reply.max_tokens is not None:
        metadata["max_tokens"] = reply.max_tokens
    return {
        "model_id": reply.model.model_id,
        "response": reply.text,
        "conversation_id": reply.conversation_id,
        "user_id": who.principal_id,
        "usage": {
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "total_tokens": reply.prompt_tokens + reply.completion_tokens,
        },
        "metadata": metadata,
    }


async def whole(steps: AsyncGenerator[Delta | Reply, None], who: Principal) -> dict[str, Any]:
    """The answer once it is complete."""
    async with aclosing(steps):
        async for step in steps:
            if isinstance(step, Reply):
                return shown(step, who)
    raise AssertionError("a conversation ends with a Reply")


async def events(steps: AsyncGenerator[Delta | Reply, None], who: Principal) -> AsyncGenerator[bytes, None]:
    """`data: {"delta": text}` for each step, then the answer's data with usage and metadata, then `[DONE]`."""
    async with aclosing(steps):
        async for step in steps:
            if isinstance(step, Reply):
                yield b"data: " + orjson.dumps(shown(step, who) | {"done": True}) + b"\n\n" + DONE
                return
            yield b'data: {"delta":' + orjson.dumps(step.text) + b"}\n\n"


def error_event(error: Exception) -> bytes:
    """An error in mid-stream."""
    known = isinstance(error, VillageError)
    code, _ = next(CODES[kind] for kind in (type(error).__mro__ if known else (VillageError,)) if kind in CODES)
    details = error.details if isinstance(error, VillageError) else {}
    message = error.message if isinstance(error, VillageError) else "an unexpected error"
    return b"data: " + orjson.dumps({"error_code": code, "message": message, "details": details}) + b"\n\n"
