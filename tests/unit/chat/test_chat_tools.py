"""Tools in OpenAI's words: the prompt that a model of the forge was trained on, and calls out of its replies."""

import json

import pytest

from cluster.errors import Invalid
from serve_apps.chat.engine import Delta, Finish, Turn
from serve_apps.dialects.openai.chunks import at_once, completion
from serve_apps.dialects.openai.schemas import CompletionRequest
from serve_apps.dialects.openai.tools import Said, Tool, said
from train.tools import Call, specifications, with_tools

TOOLS = [Tool.model_validate(each) for each in specifications()]
CALL = Call("calculator", {"expression": "34 + 58"})
BARE = json.dumps({"name": CALL.name, "arguments": dict(CALL.arguments)})  # the engine leaves the marks out
FINISH = Finish("stop", 3, 4)


def request(**fields) -> CompletionRequest:
    asked = [{"role": "user", "content": "Compute 34 + 58."}]
    return CompletionRequest.model_validate({"messages": asked, "tools": specifications()} | fields)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (BARE, Said("", (CALL,))),
        (CALL.text, Said("", (CALL,))),
        (f"Let me see. {BARE} {BARE}", Said("Let me see.", (CALL, CALL))),
        ("34 + 58 = 92", Said("34 + 58 = 92")),
        ("", Said("")),
        (BARE[:-2], Said(BARE[:-2])),
        (f"{BARE} is what I would call.", Said(f"{BARE} is what I would call.")),
        (BARE.replace("calculator", "rocket"), Said(BARE.replace("calculator", "rocket"))),
    ],
)
def test_a_reply_that_ends_in_calls_of_the_requests_tools_is_those_calls(text, found):
    assert said(text, TOOLS) == found


def test_without_tools_a_reply_is_words():
    assert json.loads(completion({}, BARE, None, FINISH))["choices"][0]["message"]["content"] == BARE


def test_a_whole_conversation_is_the_prompt_that_was_trained_on():
    function = {"name": CALL.name, "arguments": '{"expression": "34 + 58"}'}
    called = {"id": "call_1", "type": "function", "function": function}
    messages = [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Compute 34 + 58."},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_1", "content": "92"},
    ]  # fmt: skip
    assert request(messages=messages).turns() == [
        Turn("system", with_tools("Be kind.", specifications())), Turn("user", "Compute 34 + 58."),
        Turn("assistant", CALL.text), Turn("tool", "92"),
    ]  # fmt: skip
    assert request().turns()[0] == Turn("system", with_tools("", specifications()))
    assert request(tool_choice="none").turns() == request(tools=None).turns() == [Turn("user", "Compute 34 + 58.")]


def test_an_earlier_call_with_arguments_that_are_no_object_is_refused():
    called = {"function": {"name": "calculator", "arguments": "34 + 58"}}
    with pytest.raises(Invalid):
        request(messages=[{"role": "assistant", "tool_calls": [called]}]).turns()


@pytest.mark.parametrize(("text", "reason"), [(BARE, "tool_calls"), ("Hello!", "stop")])
async def test_whole_and_streamed_say_the_same(text, reason):
    async def steps():
        for start in range(0, len(text), 5):
            yield Delta(text[start : start + 5], ())
        yield FINISH

    (whole,) = json.loads(completion({"id": "x"}, text, None, FINISH, TOOLS))["choices"]
    body = b"".join([part async for part in at_once({"id": "x"}, steps(), True, TOOLS)]).decode()
    *events, end = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
    first, second, usage = (json.loads(each) for each in events)
    delta = first["choices"][0]["delta"]
    assert end == "[DONE]" and usage["usage"]["total_tokens"] == 7 and second["choices"][0]["delta"] == {}
    assert whole["finish_reason"] == second["choices"][0]["finish_reason"] == reason
    assert delta["content"] == whole["message"]["content"]
    functions = [call["function"] for call in whole["message"].get("tool_calls", [])]
    assert [call["function"] for call in delta.get("tool_calls", [])] == functions
    assert [json.loads(each["arguments"]) for each in functions] == ([dict(CALL.arguments)] if functions else [])
