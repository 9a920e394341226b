"""Items of a list that are judged one by one: what is wrong with one of them is its own answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError, ValidatorFunctionWrapHandler

from cluster.errors import Invalid, VillageError
from serve_apps.dialects.ains.errors import CODES, of_field
from serve_apps.kit.dialect import FieldError, field_of


@dataclass(frozen=True)
class Wrong:
    """An item that is none; `ref` as far as it could be read."""

    ref: str
    errors: Sequence[FieldError]


def or_wrong(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """The item, or `Wrong`: for a `WrapValidator`, so that one bad item does not lose the others."""
    try:
        return validate(value)
    except ValidationError as error:
        ref = value.get("ref") if isinstance(value, dict) else ""
        return Wrong(ref[:100] if isinstance(ref, str) else "", error.errors(include_url=False, include_context=False))


def code_of(error: VillageError) -> str:
    """The document's code."""
    code = next(CODES[kind][0] for kind in type(error).__mro__ if kind in CODES)
    if type(error) is Invalid and "field" in error.details:
        return of_field({"type": "value_error", "loc": ("body", error.details["field"])}) or code
    return code


def refused(error: VillageError) -> dict[str, Any]:
    """Why an item was not carried out."""
    return {"code": code_of(error), "message": error.message, "details": dict(error.details)}


def malformed(wrong: Wrong) -> dict[str, Any]:
    """Why an item is none, in the words that a body of its own would get."""
    placed = [{**each, "loc": ("body", *each["loc"])} for each in wrong.errors]
    first = placed[0]
    details: dict[str, Any] = {"field": field_of(first), "reason": first["msg"]}
    if len(placed) > 1:
        details["errors"] = [{"field": field_of(each), "reason": each["msg"]} for each in placed[:20]]
    code = of_field(first) or CODES[Invalid][0]
    return {"code": code, "message": f"{details['field']}: {first['msg']}", "details": details}


def in_order(errors: Mapping[int, dict[str, Any]], refs: Sequence[str]) -> list[dict[str, Any]]:
    """The errors of a batch, each with its place and name there."""
    return [{"index": index, "ref": refs[index] or None, **errors[index]} for index in sorted(errors)]
