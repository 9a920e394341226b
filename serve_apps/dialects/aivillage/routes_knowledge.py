"""AIVillage, knowledge routes: parse, call the service, render. No rule lives here."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from cluster.clock import iso
from rag.model import Answer as CoreAnswer
from rag.model import DocumentRecord
from serve_apps import prose
from serve_apps.core import FromCore
from serve_apps.dialects.aivillage.envelope import VillageRoute
from serve_apps.kit.auth import SignedIn

router = APIRouter(prefix="/v1", route_class=VillageRoute)


class KnowledgeRequest(BaseModel):
    """A document to add."""

    content: str
    metadata: dict[str, Any] = Field(default_factory=dict)
    chunk_strategy: str = "semantic"
    generate_embeddings: bool = True
    update_knowledge_graph: bool = True
    document_id: str = ""  # chosen by the caller, so that a repeated request changes nothing


class GraphUpdates(BaseModel):
    """What a document brought that its owner's graph did not have."""

    nodes_added: int
    relationships_added: int


class KnowledgeAnswer(BaseModel):
    """What adding a document did."""

    document_id: str
    chunks_created: int
    embeddings_generated: int
    knowledge_graph_updates: GraphUpdates
    processing_time_ms: int


class QueryRequest(BaseModel):
    """A question to the documents."""

    query: str
    max_results: int = 10
    include_sources: bool = True
    mode: str = "comprehensive"
    context: dict[str, Any] = Field(default_factory=dict)
    filters: dict[str, Any] = Field(default_factory=dict)


class SourceAnswer(BaseModel):
    """A document that the answer rests on."""

    document_id: str
    title: str
    relevance_score: float
    excerpt: str
    metadata: dict[str, Any]


class PathAnswer(BaseModel):
    """Entities that hang together in the sources."""

    path: list[str]
    strength: float


class QueryAnswer(BaseModel):
    """An answer with its sources."""

    query: str
    answer: str
    sources: list[SourceAnswer]
    confidence: float
    processing_time_ms: int
    knowledge_graph_paths: list[PathAnswer]
    metadata: dict[str, Any]  # answer_mode, and why it is that


class DocumentAnswer(BaseModel):
    """A document without its text."""

    document_id: str
    title: str
    document_type: str
    category: str
    author: str
    tags: list[str]
    public: bool
    user_id: str
    characters: int
    chunks: int
    metadata: dict[str, Any]
    created_at: str
    updated_at: str


class DocumentContent(DocumentAnswer):
    """A document with its text."""

    content: str


class DocumentList(BaseModel):
    """A page of documents, newest first."""

    documents: list[DocumentAnswer]
    total: int
    limit: int
    offset: int


class Deleted(BaseModel):
    """What was removed."""

    document_id: str
    deleted_at: str


@router.post("/knowledge", response_description="Knowledge added successfully")
async def add(body: KnowledgeRequest, who: SignedIn, core: FromCore) -> KnowledgeAnswer:
    """Add a document: it is cut into chunks, embedded, indexed and linked."""
    added = await core.knowledge.add(
        who, body.content, body.metadata, body.chunk_strategy, body.generate_embeddings, body.update_knowledge_graph,
        body.document_id,
    )  # fmt: skip
    return KnowledgeAnswer(
        document_id=added.document_id,
        chunks_created=added.chunks_created,
        embeddings_generated=added.embeddings_generated,
        knowledge_graph_updates=GraphUpdates(
            nodes_added=added.nodes_added, relationships_added=added.relationships_added
        ),
        processing_time_ms=added.processing_time_ms,
    )


@router.post("/query", response_description="Query processed successfully")
async def query(body: QueryRequest, who: SignedIn, core: FromCore) -> QueryAnswer:
    """Answer from the documents that the caller may see."""
    answer = await core.knowledge.query(
        who, body.query, body.max_results, body.include_sources, body.mode, body.filters, body.context,
        await prose.offered(core, who),
    )  # fmt: skip
    return rendered(await prose.written(core, who, answer))


@router.get("/knowledge", response_description="Documents listed")
async def documents(
    who: SignedIn,
    core: FromCore,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> DocumentList:
    """The caller's documents, newest first."""
    page = await core.knowledge.documents(who, limit, offset)
    return DocumentList(
        documents=[DocumentAnswer(**described(one)) for one in page.items], total=page.total, limit=limit, offset=offset
    )


@router.get("/knowledge/{document_id}", response_description="Document found")
async def document(document_id: str, who: SignedIn, core: FromCore) -> DocumentContent:
    """One document with its text."""
    found = await core.knowledge.get(who, document_id)
    return DocumentContent(**described(found.record), content=found.content)


@router.delete("/knowledge/{document_id}", response_description="Knowledge removed")
async def delete(document_id: str, who: SignedIn, core: FromCore) -> Deleted:
    """Remove a document and everything that was made from it."""
    await core.knowledge.delete(who, document_id)
    return Deleted(document_id=document_id, deleted_at=iso(core.clock()))


def rendered(answer: CoreAnswer) -> QueryAnswer:
    """The service's answer in the document's words."""
    return QueryAnswer(
        query=answer.query,
        answer=answer.answer,
        sources=[
            SourceAnswer(
                document_id=source.document_id,
                title=source.title,
                relevance_score=source.relevance_score,
                excerpt=source.excerpt,
                metadata=dict(source.metadata) | {"heading": source.heading, "start": source.start, "end": source.end},
            )
            for source in answer.sources
        ],
        confidence=answer.confidence,
        processing_time_ms=answer.processing_time_ms,
        knowledge_graph_paths=[
            PathAnswer(path=list(path.nodes), strength=round(path.strength, 4)) for path in answer.knowledge_graph_paths
        ],
        metadata={"answer_mode": answer.answer_mode, "answer_mode_reason": answer.answer_mode_reason},
    )


def described(record: DocumentRecord) -> dict[str, Any]:
    """A record's fields in the document's words."""
    named = record.model_dump(
        include={"document_id", "title", "document_type", "category", "author", "tags", "public", "characters"}
    )
    return named | {
        "user_id": record.owner,
        "chunks": record.chunks_created,
        "metadata": record.metadata,
        "created_at": iso(record.created_at),
        "updated_at": iso(record.updated_at),
    }
