"""Tools: calls as a model writes them, their schemas, what they answer, and how the chat template shows them."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.baking.tasks import is_held_out, tasks
from train.model.tokenizer import CALL, CALLED, Tokenizer, Turn
from train.tools import (
    TOOLS,
    Call,
    Malformed,
    described,
    execute,
    parse_calls,
    read_calls,
    specifications,
    spellings,
    with_tools,
)

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
CALCULATE = Call("calculator", {"expression": "34 + 58"})


@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("calculator", {"expression": "34 + 58"}, "92"),
        ("calculator", {"expression": "(3 + 4) * 2 / 4"}, "3.5"),
        ("calendar", {"days": 3}, "Tuesday 2026-11-24"),
        ("calendar", {"days": -21}, "Saturday 2026-10-31"),
        ("capital", {"country": "the Netherlands"}, "Amsterdam"),
        ("capital", {"country": "kenya"}, "Nairobi"),
        ("convert", {"value": 12, "unit": "km", "to": "miles"}, "7.46"),
        ("convert", {"value": 100, "unit": "celsius", "to": "fahrenheit"}, "212"),
        ("length", {"text": "garden"}, "6"),
        ("reverse", {"text": "garden"}, "nedrag"),
    ],
)
def test_a_tool_answers(name, arguments, answer):
    found = execute(Call(name, arguments), NOON)
    assert (found.text, found.right) == (answer, True)


@pytest.mark.parametrize(
    "call",
    [
        Call("calculator", {"expression": "1 / 0"}),
        Call("calculator", {"expression": "__import__('os').getcwd()"}),
        Call("calculator", {"expression": "9 ** 9 ** 9"}),
        Call("capital", {"country": "Atlantis"}),
        Call("convert", {"value": 1.0, "unit": "km", "to": "kg"}),
        Call("calendar", {"days": 100_001}),
        Malformed("{", "the call does not end"),
    ],
)
def test_what_has_no_answer_is_told_and_not_raised(call):
    found = execute(call, NOON)
    assert not found.right and found.text.startswith("error: ")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("{", "not JSON"), ("[]", "not JSON"), ('{"name": "calculator"}', "not JSON"), ("[" * 100_000, "not JSON"),
        ('{"name": "rocket", "arguments": {}}', "unknown tool"),
        ('{"name": "calculator", "arguments": {}}', "required"),
        ('{"name": "calculator", "arguments": {"expression": 3}}', "string"),
        ('{"name": "calendar", "arguments": {"days": 3, "hours": 1}}', "not permitted"),
        ('{"name": "convert", "arguments": {"value": 1, "unit": "km", "to": "parsec"}}', "should be"),
    ],
)  # fmt: skip
def test_a_call_against_the_schema_is_malformed(body, why):
    (found,) = parse_calls(f"Let me see. {CALL}{body}{CALLED}")
    assert isinstance(found, Malformed) and why in found.why


def test_calls_are_read_in_order_and_one_that_does_not_end_is_malformed():
    unknown = Call("rocket", {"to": "the moon"})
    assert parse_calls("no call") == []
    assert read_calls(f"{CALCULATE.text} and {unknown.text}") == [CALCULATE, unknown]
    assert isinstance(parse_calls(f"{CALCULATE.text}{CALL}{{")[1], Malformed)


@given(st.text(max_size=60))
def test_no_text_breaks_the_parser(text):
    for call in parse_calls(f"{CALL}{text}{CALLED}{text}{CALL}{text}"):
        assert isinstance(call, Malformed)


@given(st.text(max_size=20).filter(lambda text: CALLED not in text))
def test_what_is_written_is_read(word):
    assert parse_calls(Call("reverse", {"text": word}).text) == [Call("reverse", {"text": word})]


@given(st.integers(0, 50), st.booleans())
def test_a_tasks_call_answers_it_and_its_operands_are_on_one_side(seed, held_out):
    for task in tasks(6, seed, held_out):
        assert parse_calls(task.call.text) == [task.call]
        assert execute(task.call, task.now).right and task.answered_by(task.answer)
        assert not task.answered_by(task.said.format(f"9{task.result}9"))


def test_trained_and_measured_questions_share_no_operands():
    trained = {json.dumps(dict(task.call.arguments)) for task in tasks(3000, 42, held_out=False)}
    measured = tasks(120, 0, held_out=True)
    assert not trained & {json.dumps(dict(task.call.arguments)) for task in measured}
    assert len({task.question for task in measured}) == 120
    assert {task.call.name for task in measured} == set(TOOLS)
    assert 0.15 < sum(is_held_out(str(n)) for n in range(2000)) / 2000 < 0.25


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["What is the capital of France?", *spellings() * 30], 800)


@pytest.fixture(scope="module")
def theirs(tokenizer: Tokenizer, tmp_path_factory):
    from transformers import AutoTokenizer

    folder: Path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder, 512)
    return AutoTokenizer.from_pretrained(folder)


def conversation(system: str) -> list[Turn]:
    asked = [
        Turn("user", "Compute 34 + 58."), Turn("assistant", CALCULATE.text), Turn("tool", "92"),
        Turn("assistant", "34 + 58 = 92"),
    ]  # fmt: skip
    return [Turn("system", system), *asked] if system else asked


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("system", ["You are kind. ", "", None])
def test_the_template_renders_tools_and_calls_as_training_sees_them(tokenizer, theirs, system, as_text):
    arguments = json.dumps(dict(CALCULATE.arguments)) if as_text else dict(CALCULATE.arguments)
    called = [{"type": "function", "id": "call_1", "function": {"name": CALCULATE.name, "arguments": arguments}}]
    messages = [turn._asdict() for turn in conversation("")]
    messages[1] |= {"content": None, "tool_calls": called}
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    rendered = theirs.apply_chat_template(messages, tools=specifications(), return_dict=False)
    assert rendered == tokenizer.chat(conversation(with_tools(system or "", specifications())))


def test_the_template_without_tools_is_as_it_was(tokenizer, theirs):
    turns = conversation("You are kind.")
    messages = [turn._asdict() for turn in turns]
    messages[2]["tool_calls"] = [{"name": CALCULATE.name, "arguments": dict(CALCULATE.arguments)}]
    messages[2]["content"] = ""
    assert theirs.apply_chat_template(messages, return_dict=False) == tokenizer.chat(turns)
    assert theirs.apply_chat_template(messages, tools=[], return_dict=False) == tokenizer.chat(turns)


def test_a_tool_without_parameters_is_described():
    assert described([{"type": "function", "function": {"name": "now"}}, {"name": "later"}]) == "Tools: now(), later()"


def test_a_tokenizer_that_saw_calls_cuts_them_shorter(tokenizer):
    plain = Tokenizer.train(["What is the capital of France?"], 800)
    assert len(tokenizer.marked(CALCULATE.text)) < 0.7 * len(plain.marked(CALCULATE.text))
    assert tokenizer.decode(tokenizer.marked(CALCULATE.text), marks=True) == CALCULATE.text
