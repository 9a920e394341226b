"""What a caller may ask for: bounds and defaults. Pure; every `Invalid` names the field."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import Invalid
from rag.chunking import HEADING, Strategy
from rag.model import Filters, Mode

MAX_CHARACTERS = 1_000_000  # of one document
MAX_QUERY_CHARACTERS = 2_000
MAX_RESULTS = 50
MAX_METADATA_BYTES = 16_384
TITLE_CHARACTERS = 80  # of a title that is taken from the text
DOCUMENT_ID = re.compile(r"doc_[a-z0-9_]{1,64}")

E = TypeVar("E", bound=StrEnum)
M = TypeVar("M", bound=BaseModel)


class Description(BaseModel):
    """A document's metadata: these fields are known and can be filtered by, any other is kept as it came."""

    model_config = ConfigDict(frozen=True, extra="allow")

    title: str = Field("", max_length=300)
    document_type: str = Field("", max_length=100)
    category: str = Field("", max_length=100)
    author: str = Field("", max_length=200)
    tags: tuple[str, ...] = Field((), max_length=50)
    public: bool = False


@dataclass(frozen=True)
class Question:
    """A query that is fit to be run."""

    query: str
    max_results: int
    mode: Mode
    filters: Filters


def text_of(content: str) -> str:
    """The content. Raises `Invalid` where it is blank or too long."""
    if not isinstance(content, str) or not content.strip():
        raise Invalid("content is empty", field="content")
    if len(content) > MAX_CHARACTERS:
        raise Invalid(f"content is longer than {MAX_CHARACTERS} characters", field="content", maximum=MAX_CHARACTERS)
    # JSON may carry half a surrogate pair, which is no text and which no index takes.
    return content.encode(errors="replace").decode()


def described(text: str, metadata: Mapping[str, Any]) -> Description:
    """The metadata, with a title from the text where none was given. Raises `Invalid`."""
    about = _parsed(Description, metadata, "metadata")
    try:
        size = len(orjson.dumps(about.model_dump(mode="json")))
    except (TypeError, ValueError) as error:
        raise Invalid("metadata is not JSON", field="metadata") from error
    if size > MAX_METADATA_BYTES:
        raise Invalid(f"metadata is larger than {MAX_METADATA_BYTES} bytes", field="metadata")
    if about.title:
        return about
    heading = HEADING.search(text)
    first = heading["title"].rstrip(" \t#") if heading else text.strip().splitlines()[0]
    return about.model_copy(update={"title": first[:TITLE_CHARACTERS]})


def document_id_of(document_id: str) -> str:
    """The id that a caller chose, or "". Raises `Invalid`."""
    if document_id and not DOCUMENT_ID.fullmatch(document_id):
        raise Invalid("a document id is doc_ and up to 64 of a-z, 0-9 and _", field="document_id")
    return document_id


def strategy_of(name: str) -> Strategy:
    """The chunk strategy of that name. Raises `Invalid`."""
    return _member(Strategy, name, "chunk_strategy")


def question(query: str, max_results: int, mode: str, filters: Mapping[str, Any]) -> Question:
    """The query. Raises `Invalid`."""
    if not isinstance(query, str) or not query.strip():
        raise Invalid("query is empty", field="query")
    if len(query) > MAX_QUERY_CHARACTERS:
        raise Invalid(f"query is longer than {MAX_QUERY_CHARACTERS} characters", field="query")
    if not 1 <= max_results <= MAX_RESULTS:
        raise Invalid(f"max_results is 1 to {MAX_RESULTS}", field="max_results", minimum=1, maximum=MAX_RESULTS)
    query = query.encode(errors="replace").decode().strip()
    return Question(query, max_results, _member(Mode, mode, "mode"), _parsed(Filters, filters, "filters"))


def digest(*given: Any) -> str:
    """SHA-256 over what a request gave, so that its repetition is known."""
    return hashlib.sha256(orjson.dumps(given, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _member(kind: type[E], name: str, field: str) -> E:
    try:
        return kind(name)
    except ValueError as error:
        raise Invalid(f"{field} is unknown: {name}", field=field, allowed_values=[str(one) for one in kind]) from error


def _parsed(kind: type[M], given: Mapping[str, Any], field: str) -> M:
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([field, *(str(part) for part in first["loc"])])
        raise Invalid(f"{place}: {first['msg']}", field=place) from error
