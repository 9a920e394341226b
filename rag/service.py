"""Knowledge: add documents, ask them, list and remove them. What dialects call, in one replica."""

import asyncio
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any, Self, TypeVar
from weakref import WeakValueDictionary

import structlog
import torch

from cluster.clock import Clock, utc_now
from cluster.errors import AlreadyExists, Forbidden, NotFound
from cluster.events.model import Event
from cluster.identity.model import Principal
from cluster.ids import new_id
from cluster.settings import Settings
from cluster.store import Page, Store
from rag import graph, retrieval
from rag.answer import Wanted, respond
from rag.calibration import KnowledgeConfig, load
from rag.chunking import Strategy, chunk
from rag.embedding import Embedder, MiniLM, Vectors
from rag.index import ChunkIndex, Revision, Row, Scope
from rag.model import Added, Answer, Document, DocumentRecord, Mode, Reconciled, Writer
from rag.request import Description, described, digest, document_id_of, question, strategy_of, text_of

log = structlog.get_logger()
T = TypeVar("T")

GRACE = timedelta(minutes=10)  # a write that is under way elsewhere (a rolling update) is not taken for a left-over


class Knowledge:
    """Documents in Redis and LanceDB. Users see their own and the public ones, admins all.

    The record in Redis says which rows count, so adding a document is: write the rows, then the record. Whatever
    computes runs in threads; a call may be cut off anywhere and repeated with the same `document_id`.
    """

    def __init__(
        self, store: Store, index: ChunkIndex, embedder: Embedder, config: KnowledgeConfig, clock: Clock = utc_now
    ) -> None:
        self.store, self.index, self.embedder, self.config, self.clock = store, index, embedder, config, clock
        self._ingesting = ThreadPoolExecutor(1, "ingest")  # apart, so that a long document does not hold up queries
        self._asking = ThreadPoolExecutor(os.cpu_count() or 1, "query")
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._upkeep: asyncio.Task[Any] | None = None

    @classmethod
    async def open(cls, settings: Settings, store: Store, clock: Clock = utc_now) -> Self:
        """The service over `settings.home/lance`, with left-overs of a killed predecessor removed."""
        # One thread per call: calls run side by side already, and OpenMP's waiting threads starve a shared machine.
        torch.set_num_threads(1)
        embedder = await asyncio.to_thread(MiniLM)
        index = await ChunkIndex.open(Path(settings.home) / "lance", embedder.size)
        knowledge = cls(store, index, embedder, await asyncio.to_thread(load), clock)
        await knowledge.reconcile()
        return knowledge

    async def warm_up(self) -> None:
        """Touch everything that the first query would load."""
        vector = (await self._on(self._asking, self.embedder, ["warm"]))[0]
        await retrieval.candidates(self.index, "warm", vector, Scope(None), 1)

    async def close(self) -> None:
        """Let the upkeep end and the threads go."""
        if self._upkeep is not None:
            await asyncio.wait([self._upkeep])
        self._ingesting.shutdown(wait=False)
        self._asking.shutdown(wait=False)

    async def add(
        self, who: Principal, content: str, metadata: Mapping[str, Any] | None = None, chunk_strategy: str = "semantic",
        generate_embeddings: bool = True, update_knowledge_graph: bool = True, document_id: str = "",
    ) -> Added:  # fmt: skip
        """Add a document, or replace the one of that id. Repeating a request changes nothing.

        Raises `Invalid` (details name the field), `Forbidden` (only admins publish), `AlreadyExists` (another's id).
        """
        begun = perf_counter()
        text, strategy, about = text_of(content), strategy_of(chunk_strategy), described(content, metadata or {})
        if about.public and not who.is_admin:
            raise Forbidden("only an admin may publish a document to everybody", field="metadata.public")
        document_id = document_id_of(document_id) or new_id("doc")
        given = digest(text, about.model_dump(mode="json"), strategy, generate_embeddings, update_knowledge_graph)
        # Two writers of one document would each take the other's rows for those that they replaced.
        turn = self._turns.setdefault(document_id, asyncio.Lock())
        async with turn:
            record = await self.store.find(DocumentRecord, document_id)
            if record is not None and not who.sees(record.owner):
                raise AlreadyExists(f"document {document_id} exists", id=document_id)
            if record is None or record.digest != given:
                rows, vectors = await self._on(
                    self._ingesting,
                    self._prepare,
                    text,
                    about.title,
                    strategy,
                    generate_embeddings,
                    update_knowledge_graph,
                )
                new = self._record(document_id, record, who, text, strategy, about, given)
                record = await self._write(record, new, text, rows, vectors)
        self._keep_up()
        return Added(
            document_id, record.chunks_created, record.embeddings_generated, record.nodes_added,
            record.relationships_added, _ms(begun),
        )  # fmt: skip

    async def query(
        self, who: Principal, query: str, max_results: int = 10, include_sources: bool = True,
        mode: str = "comprehensive", filters: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None, writer: Writer | None = None,
    ) -> Answer:  # fmt: skip
        """An answer from what `who` may see. Raises `Invalid` (details name the field).

        `writer` is the model that is served, if any: where it is good enough the answer has a `prompt` for it, whose
        reply the caller puts in place of the extract. `context` goes into that prompt.
        """
        begun = perf_counter()
        asked = question(query, max_results, mode, filters or {})
        vector = None
        if asked.mode is not Mode.KEYWORD:
            vector = (await self._on(self._asking, self.embedder, [asked.query]))[0]
        scope = Scope(None if who.is_admin else who.owner, asked.filters)
        hits = await retrieval.candidates(
            self.index, asked.query, vector, scope, max(40, 4 * asked.max_results), asked.mode is not Mode.FAST
        )
        records = await self._records(hit.document_id for hit in hits)
        hits = [hit for hit in hits if _counts(records, hit.document_id, hit.revision)]
        passages = retrieval.weigh(asked.query, vector, hits, self.config.calibration)
        wanted = Wanted(asked, include_sources, context or {}, writer)
        answer = await self._on(self._asking, respond, wanted, vector, passages, records, self.embedder, self.config)
        return answer(_ms(begun))

    async def get(self, who: Principal, document_id: str) -> Document:
        """A document with its text. Raises `NotFound`."""
        record = await self._visible(who, document_id)
        return Document(record, await self.index.text(document_id, record.revision) or "")

    async def documents(self, who: Principal, limit: int = 50, offset: int = 0) -> Page[DocumentRecord]:
        """Own documents (an admin: all), newest first."""
        index, parts = ("all", ()) if who.is_admin else ("owner", (who.owner,))
        return await self.store.page(DocumentRecord, index, *parts, offset=offset, limit=limit)

    async def delete(self, who: Principal, document_id: str) -> DocumentRecord:
        """Remove a document. Raises `NotFound`, and `Forbidden` for a public one of somebody else."""
        record = await self._visible(who, document_id)
        if not who.sees(record.owner):
            raise Forbidden("only its owner may remove a document", document_id=document_id)
        event = Event(
            kind="knowledge.deleted", subject=document_id, owner=record.owner, at=self.clock(),
            data={"title": record.title},
        )  # fmt: skip
        record = await self.store.delete(DocumentRecord, document_id, event)
        await self.index.remove(document_id, record.revision)
        self._keep_up()
        return record

    async def reconcile(self, grace: timedelta = GRACE) -> Reconciled:
        """Remove rows older than `grace` that no record counts; name records whose rows are not there."""
        # Rows before records: what is added in between then has a record here, and is no left-over.
        revisions = await self.index.revisions()
        records = await self._records({document_id for document_id, _ in revisions})
        long_ago = self.clock() - grace
        stale = [key for key, written_at in revisions.items() if not _counts(records, *key) and written_at <= long_ago]
        for key in stale:
            await self.index.remove(*key)
        known = await self.store.page(DocumentRecord, "all", high=long_ago.timestamp(), limit=-1)
        missing = [r.document_id for r in known.items if (r.document_id, r.revision) not in revisions]
        return Reconciled(len(stale), tuple(missing))

    def _prepare(
        self, text: str, title: str, strategy: Strategy, embed: bool, link: bool
    ) -> tuple[list[Row], Vectors | None]:
        chunks = chunk(text, strategy, self.embedder)
        texts = [text[c.start : c.end] for c in chunks]
        named = graph.entities(texts) if link else [()] * len(chunks)
        rows = [Row(c.start, c.end, c.heading, t, e) for c, t, e in zip(chunks, texts, named, strict=True)]
        vectors = self.embedder([row.terms(title) for row in rows]) if embed else None
        return rows, vectors

    def _record(
        self, document_id: str, before: DocumentRecord | None, who: Principal, text: str, strategy: Strategy,
        about: Description, given: str,
    ) -> DocumentRecord:  # fmt: skip
        at = self.clock()
        known = about.model_dump(include={"title", "document_type", "category", "author", "tags", "public"})
        return DocumentRecord(
            document_id=document_id, owner=before.owner if before else who.owner, revision=secrets.token_hex(8),
            digest=given, **known, metadata=about.model_dump(mode="json", exclude_unset=True), chunk_strategy=strategy,
            characters=len(text), created_at=before.created_at if before else at, updated_at=at,
        )  # fmt: skip

    async def _write(
        self, before: DocumentRecord | None, new: DocumentRecord, text: str, rows: list[Row], vectors: Vectors | None
    ) -> DocumentRecord:
        """Rows, then the record that makes them count, then away with the rows that it replaced."""
        nodes, relations = await self._news(new, rows)
        new = new.model_copy(
            update={
                "chunks_created": len(rows), "embeddings_generated": 0 if vectors is None else len(vectors),
                "nodes_added": nodes, "relationships_added": relations,
            }
        )  # fmt: skip
        shared = Revision(
            new.document_id, new.revision, new.title, new.owner, new.public, new.document_type, new.category, new.tags,
            new.updated_at,
        )  # fmt: skip
        await self.index.write(shared, text, rows, vectors)
        data = {"title": new.title, "chunks": len(rows), "replaced": before is not None}
        event = Event(kind="knowledge.added", subject=new.document_id, owner=new.owner, at=new.updated_at, data=data)
        if before is None:
            return await self.store.create(new, event)
        await self.store.change(DocumentRecord, new.document_id, lambda _: new, lambda _, __: event)
        await self.index.remove(before.document_id, before.revision)
        return new

    async def _news(self, new: DocumentRecord, rows: list[Row]) -> tuple[int, int]:
        """How many entities and relations the document brings that its owner's other documents do not have."""
        names = {entity for row in rows for entity in row.entities}
        if not names:
            return 0, 0
        others = await self.index.naming(sorted(names), Scope(new.owner), new.document_id)
        records = await self._records(document_id for document_id, _, _, _ in others)
        counted = [(text, entities) for name, rev, text, entities in others if _counts(records, name, rev)]
        own = [(row.text, row.entities) for row in rows]
        return await self._on(self._ingesting, _difference, own, counted)

    async def _records(self, document_ids: Iterable[str]) -> dict[str, DocumentRecord]:
        found = await self.store.many(DocumentRecord, list(dict.fromkeys(document_ids)))
        return {record.document_id: record for record in found}

    async def _visible(self, who: Principal, document_id: str) -> DocumentRecord:
        record = await self.store.find(DocumentRecord, document_id)
        if record is None or not (record.public or who.sees(record.owner)):
            raise NotFound(f"no document {document_id}", id=document_id)
        return record

    def _keep_up(self) -> None:
        if self._upkeep is None or self._upkeep.done():
            self._upkeep = asyncio.create_task(self._tidy())

    async def _tidy(self) -> None:
        try:
            if await self.index.upkeep():
                await self.reconcile()
        except Exception:
            # The index answers without it, only slower; the next write tries again.
            log.exception("the upkeep of the index failed")

    async def _on(self, threads: ThreadPoolExecutor, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, work, *arguments)


def _counts(records: Mapping[str, DocumentRecord], document_id: str, revision: str) -> bool:
    return document_id in records and records[document_id].revision == revision


def _difference(own: list[tuple[str, tuple[str, ...]]], others: list[tuple[str, tuple[str, ...]]]) -> tuple[int, int]:
    entities = {e for _, named in own for e in named} - {e for _, named in others for e in named}
    mine, known = (
        set(graph.relations(some for text, named in rows for some in graph.together(text, named)))
        for rows in (own, others)
    )
    return len(entities), len(mine - known)


def _ms(begun: float) -> int:
    return round((perf_counter() - begun) * 1000)
