"""What the village knows, as records and answers. Light to import: whoever calls the service needs only this."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from cluster.store import Index, Record
from rag.chunking import Strategy
from rag.graph import Path


class Mode(StrEnum):
    """How a query searches."""

    COMPREHENSIVE = "comprehensive"  # vectors and keywords, fused; sentences compared by meaning; graph paths
    FAST = "fast"  # vectors alone; sentences picked by their words
    KEYWORD = "keyword"  # BM25 alone: nothing is embedded, finds documents without embeddings


class AnswerMode(StrEnum):
    """Where the words of an answer come from."""

    EXTRACTIVE = "extractive"  # sentences of the sources, as they stand
    GENERATIVE = "generative"  # written by the served model from the sources


class DocumentRecord(Record):
    """A document that was added. Its text, chunks and vectors lie in LanceDB under the same id and revision."""

    kind: ClassVar[str] = "document"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index("all", lambda d: d.created_at.timestamp()),
        Index("owner", lambda d: d.created_at.timestamp(), lambda d: [(d.owner,)]),
        Index("public", lambda d: d.created_at.timestamp(), lambda d: [()] if d.public else []),
    )

    document_id: str
    owner: str
    revision: str  # of the rows in LanceDB that count; rows of any other are left over from a write that was replaced
    digest: str  # of everything that was given, so that a repeated request is known
    public: bool = False
    title: str
    document_type: str = ""
    category: str = ""
    author: str = ""
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}  # as it was given
    chunk_strategy: Strategy
    characters: int
    chunks_created: int = 0
    embeddings_generated: int = 0
    nodes_added: int = 0
    relationships_added: int = 0
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class Document:
    """A document and its text."""

    record: DocumentRecord
    content: str


class Filters(BaseModel):
    """What a source must be. Empty means any; several values of one field are alternatives."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    document_ids: tuple[str, ...] = ()
    document_types: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    confidence_threshold: float = Field(default=0.0, ge=0.0, le=1.0)  # least relevance of a source


@dataclass(frozen=True)
class Writer:
    """The model that could write an answer, by what was measured of it (its registry record)."""

    name: str
    parameters: int
    held_out_loss: float | None = None  # nats per token on text it was not trained on; None: nobody has measured it


@dataclass(frozen=True)
class Added:
    """What adding a document did. The counts are of what was written; the time is this call's own."""

    document_id: str
    chunks_created: int
    embeddings_generated: int
    nodes_added: int
    relationships_added: int
    processing_time_ms: int


@dataclass(frozen=True)
class Source:
    """A document that an answer rests on, by its best passage."""

    document_id: str
    title: str
    relevance_score: float  # calibrated probability that the passage is relevant
    excerpt: str
    start: int  # of the passage in the document's text
    end: int
    heading: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """An answer with its sources, best first. `[1]` in the text cites the first source."""

    query: str
    answer: str
    sources: tuple[Source, ...]
    confidence: float  # calibrated probability that the sources hold something relevant
    knowledge_graph_paths: tuple[Path, ...]
    processing_time_ms: int
    answer_mode: AnswerMode
    answer_mode_reason: str
    prompt: str = ""  # for the served model, where it is good enough; "" says: keep the extractive answer


@dataclass(frozen=True)
class Reconciled:
    """What a comparison of Redis and LanceDB found: rows removed that no record counts, records without their rows."""

    removed: int
    missing: tuple[str, ...]
