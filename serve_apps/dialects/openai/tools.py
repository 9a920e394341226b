"""Tools in OpenAI's words: how a request's stand in the prompt, and the calls that a reply has. Pure.

The models of the forge write a call as JSON between two marks, which the engine leaves out of the text as it does with
every special token. So a reply whose end is such JSON is a call, where the request has a tool of that name.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field

from cluster.errors import Invalid
from serve_apps.chat.engine import Turn
from train.model.tokenizer import CALL, CALLED
from train.tools import Call, Malformed, read, with_tools

DECODER = json.JSONDecoder()


class Function(BaseModel):
    """What a tool is called and takes."""

    name: str = Field(min_length=1, max_length=64)
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)


class Tool(BaseModel):
    """One of a request's tools."""

    type: Literal["function"] = "function"
    function: Function


class CalledFunction(BaseModel):
    """A call's name, and its arguments as JSON in a string."""

    name: str
    arguments: str = "{}"


class ToolCall(BaseModel):
    """A call in an assistant's earlier message."""

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction

    @property
    def text(self) -> str:
        """As the model wrote it. Raises `Invalid`."""
        call = read(f'{{"name": {json.dumps(self.function.name)}, "arguments": {self.function.arguments}}}')
        if isinstance(call, Malformed):
            raise Invalid("a tool call's arguments are a JSON object in a string", field="messages")
        return call.text


@dataclass(frozen=True)
class Said:
    """A reply: its words, and the calls at its end."""

    content: str
    calls: tuple[Call, ...] = ()


def offered(turns: Sequence[Turn], tools: Sequence[Tool]) -> list[Turn]:
    """The turns with the tools in their system turn, as a model of the forge was trained to see them."""
    if not tools:
        return list(turns)
    specified = [tool.model_dump() for tool in tools]
    if turns and turns[0].role == "system":
        return [Turn("system", with_tools(turns[0].content, specified)), *turns[1:]]
    return [Turn("system", with_tools("", specified)), *turns]


def said(text: str, tools: Sequence[Tool]) -> Said:
    """The reply as words and calls; one that calls anything but the request's tools is all words."""
    names, bare = {tool.function.name for tool in tools}, text.replace(CALL, "").replace(CALLED, "")
    start, calls = bare.find('{"name"'), list[Call]()
    at = start
    while 0 <= at < len(bare):
        try:
            value, end = DECODER.raw_decode(bare, at)
        except (ValueError, RecursionError):
            return Said(text)
        call = read(json.dumps(value))
        if isinstance(call, Malformed) or call.name not in names:
            return Said(text)
        calls.append(call)
        at = end + len(bare[end:]) - len(bare[end:].lstrip())
    return Said(bare[:start].strip(), tuple(calls)) if calls else Said(text)


def shown(calls: Sequence[Call], ids: Sequence[str]) -> list[dict[str, Any]]:
    """A message's `tool_calls`."""
    return [
        {
            "id": name, "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)},
        }
        for call, name in zip(calls, ids, strict=True)
    ]  # fmt: skip
