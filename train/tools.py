"""Tools that a model may call: what they take as JSON schemas, calls as they stand in a reply, and calling them. Pure.

A call is `{"name": ..., "arguments": {...}}` between `<|call|>` and `<|called|>` in an assistant's turn; what a tool
answers is a turn of role tool. A call that is wrong is a value, never an exception: models make such calls.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from train.curriculum.expression import as_text, evaluate_expression
from train.data.sources import CORPUS
from train.model.tokenizer import CALL, CALLED

METRES = {"m": 1.0, "km": 1000.0, "feet": 0.3048, "miles": 1609.344, "inches": 0.0254, "cm": 0.01}
GRAMS = {"g": 1.0, "kg": 1000.0, "pounds": 453.59237, "ounces": 28.349523125}
LITRES = {"liters": 1.0, "gallons": 3.785411784, "cups": 0.2365882365}
SCALES = (METRES, GRAMS, LITRES)
Unit = Literal[
    "m", "km", "feet", "miles", "inches", "cm", "g", "kg", "pounds", "ounces", "liters", "gallons", "cups", "celsius",
    "fahrenheit",
]  # fmt: skip


class Arguments(BaseModel):
    """Of a tool; its JSON schema is made of the fields, and nothing else is taken."""

    model_config = ConfigDict(extra="forbid", strict=True)

    def answer(self, now: datetime) -> str:
        """What the tool says. Raises `ValueError` for what has no answer."""
        raise NotImplementedError


class Calculator(Arguments):
    """Compute an expression of numbers, + - * / and brackets."""

    expression: str = Field(max_length=200)

    def answer(self, now: datetime) -> str:
        """See `evaluate_expression`."""
        return as_text(evaluate_expression(self.expression))


class Calendar(Arguments):
    """The date and weekday so many days from today, or before today."""

    days: int = Field(ge=-100_000, le=100_000)

    def answer(self, now: datetime) -> str:
        """Such as "Tuesday 2026-11-24"."""
        try:
            return (now + timedelta(days=self.days)).strftime("%A %Y-%m-%d")
        except OverflowError as error:
            raise ValueError("no such date") from error


class Capital(Arguments):
    """The capital of a country."""

    country: str = Field(max_length=80)

    def answer(self, now: datetime) -> str:
        """From the table that the project ships."""
        found = capitals().get(self.country.strip().lower().removeprefix("the "))
        if found is None:
            raise ValueError(f"no country {self.country}")
        return found


class Convert(Arguments):
    """A value in another unit of the same kind."""

    value: float
    unit: Unit
    to: Unit

    def answer(self, now: datetime) -> str:
        """With at most two digits after the point."""
        if self.unit == "celsius" and self.to == "fahrenheit":
            return as_text(round(self.value * 9 / 5 + 32, 2))
        if self.unit == "fahrenheit" and self.to == "celsius":
            return as_text(round((self.value - 32) * 5 / 9, 2))
        for scale in SCALES:
            if self.unit in scale and self.to in scale:
                return as_text(round(self.value * scale[self.unit] / scale[self.to], 2))
        raise ValueError(f"{self.unit} cannot become {self.to}")


class Length(Arguments):
    """How many letters a text has."""

    text: str = Field(max_length=1000)

    def answer(self, now: datetime) -> str:
        """Letters alone count."""
        return str(sum(letter.isalpha() for letter in self.text))


class Reverse(Arguments):
    """A text backwards."""

    text: str = Field(max_length=1000)

    def answer(self, now: datetime) -> str:
        """The last character first."""
        return self.text[::-1]


@dataclass(frozen=True)
class Call:
    """A call that fits its tool's schema."""

    name: str
    arguments: Mapping[str, Any]

    @property
    def text(self) -> str:
        """As it stands in an assistant's turn, marks included."""
        return f"{CALL}{json.dumps({'name': self.name, 'arguments': dict(self.arguments)}, ensure_ascii=False)}{CALLED}"


@dataclass(frozen=True)
class Malformed:
    """What was meant as a call and is none: broken JSON, an unknown tool, arguments against the schema."""

    text: str
    why: str
    name: str = ""  # of the tool, where it is one


@dataclass(frozen=True)
class Answer:
    """What a call came to; `right` is false where `text` says what went wrong."""

    text: str
    right: bool = True


TOOLS: dict[str, type[Arguments]] = {
    kind.__name__.lower(): kind for kind in (Calculator, Calendar, Capital, Convert, Length, Reverse)
}


def specifications(names: Iterable[str] = tuple(TOOLS)) -> list[dict[str, Any]]:
    """The tools as a request of OpenAI's dialect has them, and as `apply_chat_template` takes them."""
    return [
        {
            "type": "function",
            "function": {
                "name": name, "description": TOOLS[name].__doc__, "parameters": TOOLS[name].model_json_schema(),
            },
        }
        for name in names
    ]  # fmt: skip


def described(specified: Iterable[Mapping[str, Any]]) -> str:
    """The tools in the short form that the chat template writes into a system turn: names and their arguments."""
    functions = [each.get("function", each) for each in specified]
    arguments = [", ".join((each.get("parameters") or {}).get("properties") or {}) for each in functions]
    return "Tools: " + ", ".join(f"{each['name']}({names})" for each, names in zip(functions, arguments, strict=True))


def parse_calls(text: str) -> list[Call | Malformed]:
    """Every call in a reply, in order, checked against the tools here."""
    return [checked(call) if isinstance(call, Call) else call for call in read_calls(text)]


def read_calls(text: str) -> list[Call | Malformed]:
    """Every call in a reply, of whatever tool. A call that does not end is malformed."""
    found: list[Call | Malformed] = []
    for part in text.split(CALL)[1:]:
        body, mark, _ = part.partition(CALLED)
        found.append(read(body) if mark else Malformed(body, "the call does not end"))
    return found


def read(body: str) -> Call | Malformed:
    """What stands between the marks."""
    try:
        name, arguments = (value := json.loads(body))["name"], value["arguments"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return Malformed(body, "not JSON with a name and arguments")
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return Malformed(body, "not JSON with a name and arguments")
    return Call(name, arguments)


def checked(call: Call) -> Call | Malformed:
    """The call, where it is of one of the tools here and fits its schema."""
    if call.name not in TOOLS:
        return Malformed(call.text, "unknown tool")
    try:
        TOOLS[call.name].model_validate(call.arguments)
    except ValidationError as error:
        return Malformed(call.text, error.errors()[0]["msg"], call.name)
    return call


def execute(call: Call | Malformed, now: datetime) -> Answer:
    """Really call the tool; `now` is the time that a calendar counts from."""
    if isinstance(call, Malformed):
        return Answer(f"error: {call.why}", False)
    try:
        return Answer(TOOLS[call.name].model_validate(call.arguments).answer(now))
    except (ValueError, ArithmeticError) as error:
        return Answer(f"error: {error}", False)


@cache
def capitals() -> dict[str, str]:
    """By the country's name in lower case and without its article."""
    lines = (line.partition(": ") for line in (CORPUS / "capitals.txt").read_text().splitlines())
    return {country.lower().removeprefix("the "): city for country, _, city in lines}


def with_tools(system: str, specified: Iterable[Mapping[str, Any]]) -> str:
    """The content of a system turn, as the chat template renders it for a request with tools."""
    return f"{system.strip()}\n{described(specified)}".strip()


def spellings() -> list[str]:
    """What calls look like, for a tokenizer to learn: by plain text alone they would be longer by half."""
    shapes = [(name, dict.fromkeys(kind.model_fields, "")) for name, kind in TOOLS.items()]
    shapes += [("convert", {"value": 1, "unit": unit, "to": unit}) for unit in get_args(Unit)]
    return [json.dumps({"name": name, "arguments": arguments}) for name, arguments in shapes] + [
        described(specifications())
    ]
