"""OpenAI, chat completions: parse, call the core, render."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from cluster.ids import new_id
from serve_apps.chat.engine import Delta, Finish, ModelRef, TokenLogprob
from serve_apps.chat.stream import ClientGone, EventStream, while_wanted
from serve_apps.core import FromCore
from serve_apps.dialects.openai.chunks import at_once, chunks, completion
from serve_apps.dialects.openai.errors import error_event
from serve_apps.dialects.openai.schemas import CompletionRequest
from serve_apps.dialects.openai.tools import Tool
from serve_apps.kit.auth import SignedIn

router = APIRouter(prefix="/openai/v1/chat")


@router.post(
    "/completions", response_class=Response,
    responses={
        200: {"content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}},
        404: {},
    },
)  # fmt: skip
async def complete(body: CompletionRequest, request: Request, who: SignedIn, core: FromCore) -> Response:
    """A reply to the messages, whole or as a stream of chunks."""
    sampling, turns = body.sampling(), body.turns()
    model, steps = await core.chat.complete(who, body.model, turns, sampling)
    head = head_of(model, core.clock().timestamp())
    if body.stream:
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        told = at_once(head, steps, include_usage, body.offers) if body.offers else chunks(head, steps, include_usage)
        return EventStream(told, error_event)
    try:
        return Response(await while_wanted(request, whole(head, steps, body.offers)), media_type="application/json")
    except ClientGone:
        return Response(status_code=499)


def head_of(model: ModelRef, at: float) -> dict[str, Any]:
    """What the whole answer and every chunk begin with."""
    return {
        "id": new_id("chatcmpl"), "created": int(at), "model": model.model_id, "system_fingerprint": model.version,
    }  # fmt: skip


async def whole(head: dict[str, Any], steps: AsyncGenerator[Delta | Finish, None], tools: Sequence[Tool] = ()) -> bytes:
    """The answer once it is complete."""
    parts: list[str] = []
    entries: list[TokenLogprob] | None = None
    async for step in steps:
        if isinstance(step, Finish):
            return completion(head, "".join(parts), entries, step, tools)
        parts.append(step.text)
        if step.logprobs is not None:
            entries = [*(entries or ()), *step.logprobs]
    raise AssertionError("an engine that ends without a Finish raises")
