"""The answers' bytes. Head and tail of a chunk are the same for a whole stream: only the text between is encoded."""

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

import orjson

from cluster.ids import new_id
from serve_apps.chat.engine import Delta, Finish, TokenLogprob
from serve_apps.chat.stream import DONE
from serve_apps.dialects.openai.tools import Said, Tool, said, shown

REASONS = {"stop": "stop", "length": "length", "abort": "stop"}


def usage(finish: Finish) -> dict[str, Any]:
    """OpenAI's token counts; those of thoughts, where there are any, are part of the completion's."""
    total = finish.prompt_tokens + finish.completion_tokens
    details = {"completion_tokens_details": {"reasoning_tokens": finish.thought_tokens}}
    return {
        "prompt_tokens": finish.prompt_tokens, "completion_tokens": finish.completion_tokens, "total_tokens": total,
    } | (details if finish.thought_tokens else {})  # fmt: skip


def logprobs_of(entries: Iterable[TokenLogprob] | None) -> dict[str, Any] | None:
    """A choice's `logprobs`."""
    if entries is None:
        return None
    return {
        "content": [
            _token(entry.token, entry.logprob)
            | {"top_logprobs": [_token(token, logprob) for token, logprob in entry.top]}
            for entry in entries
        ]
    }


def _token(token: str, logprob: float) -> dict[str, Any]:
    # OpenAI's own smallest figure: JSON has no -inf.
    return {"token": token, "logprob": max(logprob, -9999.0), "bytes": list(token.encode("utf-8", "replace"))}


def message_of(text: str, tools: Sequence[Tool]) -> dict[str, Any]:
    """The assistant's message: its words, and the calls of the request's tools that it ends with."""
    found = said(text, tools) if tools else Said(text)
    if not found.calls:
        return {"role": "assistant", "content": text}
    calls = shown(found.calls, [new_id("call") for _ in found.calls])
    return {"role": "assistant", "content": found.content or None, "tool_calls": calls}


def reason_of(message: dict[str, Any], finish: Finish) -> str:
    """Why the message ends where it does."""
    return "tool_calls" if "tool_calls" in message else REASONS[finish.reason]


def completion(
    head: dict[str, Any], text: str, entries: list[TokenLogprob] | None, finish: Finish, tools: Sequence[Tool] = ()
) -> bytes:
    """The whole answer."""
    message = message_of(text, tools) | {"refusal": None}
    choice = {
        "index": 0, "message": message, "logprobs": logprobs_of(entries), "finish_reason": reason_of(message, finish),
    }  # fmt: skip
    return orjson.dumps(head | {"object": "chat.completion", "choices": [choice], "usage": usage(finish)})


async def chunks(
    head: dict[str, Any], steps: AsyncGenerator[Delta | Finish, None], include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The stream: a Delta an event; the role goes with the first one, the reason, usage and end with the last."""
    opening = b"data: " + orjson.dumps(head | {"object": "chat.completion.chunk"})[:-1]
    choices = opening + b',"choices":[{"index":0,"delta":'
    rest = b',"usage":null}\n\n' if include_usage else b"}\n\n"
    before = choices + b'{"content":'
    after = b'},"logprobs":null,"finish_reason":null}]' + rest
    lead = choices + b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]' + rest
    async with aclosing(steps):
        async for step in steps:
            if isinstance(step, Finish):
                reason = b"{}" + b',"logprobs":null,"finish_reason":"' + REASONS[step.reason].encode() + b'"}]' + rest
                last = lead + choices + reason
                if include_usage:
                    last += opening + b',"choices":[],"usage":' + orjson.dumps(usage(step)) + b"}\n\n"
                yield last + DONE
                return
            if step.logprobs is None:
                yield lead + before + orjson.dumps(step.text) + after
            else:
                given = orjson.dumps(logprobs_of(step.logprobs))
                yield (
                    lead
                    + before
                    + orjson.dumps(step.text)
                    + after.replace(b'"logprobs":null', b'"logprobs":' + given, 1)
                )
            lead = b""


async def at_once(
    head: dict[str, Any], steps: AsyncGenerator[Delta | Finish, None], include_usage: bool, tools: Sequence[Tool]
) -> AsyncGenerator[bytes, None]:
    """The stream of a request with tools: all of the message in one event, since its end says whether it is a call."""
    parts: list[str] = []
    entries: list[TokenLogprob] | None = None
    async with aclosing(steps):
        async for step in steps:
            if isinstance(step, Finish):
                message = message_of("".join(parts), tools)
                calls = [{"index": index} | call for index, call in enumerate(message.get("tool_calls", ()))]
                delta = message | ({"tool_calls": calls} if calls else {})
                yield event(head, delta, None, include_usage, logprobs_of(entries))
                last = event(head, {}, reason_of(message, step), include_usage)
                if include_usage:
                    told = head | {"object": "chat.completion.chunk", "choices": [], "usage": usage(step)}
                    last += b"data: " + orjson.dumps(told) + b"\n\n"
                yield last + DONE
                return
            parts.append(step.text)
            if step.logprobs is not None:
                entries = [*(entries or ()), *step.logprobs]


def event(
    head: dict[str, Any], delta: dict[str, Any], reason: str | None, include_usage: bool,
    logprobs: dict[str, Any] | None = None,
) -> bytes:  # fmt: skip
    """One chunk."""
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
    told = head | {"object": "chat.completion.chunk", "choices": [choice]} | ({"usage": None} if include_usage else {})
    return b"data: " + orjson.dumps(told) + b"\n\n"
