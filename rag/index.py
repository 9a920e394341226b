"""The index: texts, chunks and vectors in LanceDB. The only file that knows LanceDB.

A row belongs to one revision of one document, and is never changed: a new revision is written beside the old one,
counts from the moment its record says so, and only then does the old one go. So a kill at any point leaves either the
old or the new document whole, and at worst rows that no record counts, which `ChunkIndex.revisions` shows.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import FTS, Bitmap, BTree, HnswSq
from numpy.typing import NDArray

from rag.model import Filters

EXACT_ROWS = 20_000  # up to here a scan of all vectors is fast enough; beyond, an approximate index is built
WRITES_PER_UPKEEP = 32  # each write adds a file and a version
KEEP_VERSIONS = timedelta(minutes=10)  # a query that began on an older version can still end

INDEX_CACHE, METADATA_CACHE = 128 << 20, 32 << 20  # bytes

Vector = NDArray[np.float32]
EVERYTHING = Filters()


@dataclass(frozen=True)
class Scope:
    """Which rows a query may see: those of `owner` and the public ones (None: all), and of these the filtered."""

    owner: str | None
    filters: Filters = EVERYTHING


@dataclass(frozen=True)
class Row:
    """One chunk as it is written."""

    start: int
    end: int
    heading: str
    text: str
    entities: tuple[str, ...]

    def terms(self, title: str) -> str:
        """What is searched and embedded: a passage alone often does not say what it is about."""
        return "\n".join([*dict.fromkeys(part for part in (title, self.heading) if part), self.text])


@dataclass(frozen=True)
class Revision:
    """What all rows of one revision share: its identity and what queries filter by."""

    document_id: str
    revision: str
    title: str
    owner: str
    public: bool
    document_type: str
    category: str
    tags: tuple[str, ...]
    written_at: datetime


@dataclass(frozen=True)
class Hit:
    """A chunk that a search found. `vector` is None for a chunk without one; `score` is what the search ranks by."""

    chunk_id: str
    document_id: str
    revision: str
    start: int
    end: int
    heading: str
    text: str
    entities: tuple[str, ...]
    vector: Vector | None
    score: float


SHARED = [
    pa.field("document_id", pa.string()),
    pa.field("revision", pa.string()),
    pa.field("written_at", pa.timestamp("us", tz="UTC")),
]
DOCUMENTS = pa.schema([*SHARED, pa.field("text", pa.string())])
FOUND = ["chunk_id", "document_id", "revision", "start", "end", "heading", "terms", "entities", "vector"]


def chunks_schema(size: int) -> pa.Schema:
    """Columns of the chunk table, for vectors of `size` numbers."""
    text, texts, number = pa.string(), pa.list_(pa.string()), pa.int32()
    fields: list[tuple[str, pa.DataType]] = [
        ("chunk_id", text), ("owner", text), ("public", pa.bool_()), ("document_type", text), ("category", text),
        ("tags", texts), ("start", number), ("end", number), ("heading", text), ("terms", text), ("entities", texts),
        ("vector", pa.list_(pa.float32(), size)),
    ]  # fmt: skip
    return pa.schema([*SHARED, *(pa.field(name, kind) for name, kind in fields)])


class ChunkIndex:
    """Both tables. Reads run side by side; writes wait for one another, so that none has to be tried again."""

    def __init__(self, documents: lancedb.AsyncTable, chunks: lancedb.AsyncTable, size: int) -> None:
        self._documents, self._chunks, self._schema = documents, chunks, chunks_schema(size)
        self._turn = asyncio.Lock()
        self._writes = 0

    @classmethod
    async def open(cls, folder: Path, size: int) -> Self:
        """The index in `folder`, made if it is not there."""
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        # Its own bounds are 6 GiB and 1 GiB, and every write leaves a version behind in there.
        session = lancedb.Session(index_cache_size_bytes=INDEX_CACHE, metadata_cache_size_bytes=METADATA_CACHE)
        connection = await lancedb.connect_async(str(folder), session=session)
        documents = await connection.create_table("documents", schema=DOCUMENTS, exist_ok=True)
        chunks = await connection.create_table("chunks", schema=chunks_schema(size), exist_ok=True)
        if not await chunks.list_indices():
            await chunks.create_index("terms", config=FTS(with_position=False))
        return cls(documents, chunks, size)

    async def write(self, of: Revision, text: str, rows: Sequence[Row], vectors: Vector | None) -> None:
        """Write a revision whole; `vectors` (n, size) or None. It shows in searches from here on."""
        shared = {"document_id": of.document_id, "revision": of.revision, "written_at": of.written_at}
        own = shared | {
            "owner": of.owner, "public": of.public, "document_type": of.document_type, "category": of.category,
            "tags": list(of.tags),
        }  # fmt: skip
        columns = [
            own
            | {"chunk_id": f"{of.document_id}:{of.revision}:{number}", "start": row.start, "end": row.end}
            | {"heading": row.heading, "terms": row.terms(of.title), "entities": list(row.entities)}
            for number, row in enumerate(rows)
        ]
        table = pa.Table.from_pylist(columns, schema=self._schema.remove(self._schema.get_field_index("vector")))
        kind = self._schema.field("vector").type
        if vectors is None:
            column = pa.nulls(len(rows), kind)
        else:
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float32()), type=kind)
        async with self._turn:
            await asyncio.gather(
                self._documents.add(pa.Table.from_pylist([shared | {"text": text}], schema=DOCUMENTS)),
                self._chunks.add(table.append_column(self._schema.field("vector"), column)),
            )
            self._writes += 1

    async def remove(self, document_id: str, revision: str) -> None:
        """Drop a revision's rows; nothing happens where there are none."""
        where = f"document_id = {quoted(document_id)} AND revision = {quoted(revision)}"
        async with self._turn:
            await asyncio.gather(self._chunks.delete(where), self._documents.delete(where))
            self._writes += 1

    async def text(self, document_id: str, revision: str) -> str | None:
        """The document's whole text."""
        where = f"document_id = {quoted(document_id)} AND revision = {quoted(revision)}"
        rows = await self._documents.query().where(where).select(["text"]).limit(1).to_list()
        return rows[0]["text"] if rows else None

    async def near(self, vector: Vector, scope: Scope, limit: int) -> list[Hit]:
        """The chunks whose vectors are nearest, best first; `score` is the cosine."""
        query = self._chunks.query().nearest_to(vector).distance_type("dot").refine_factor(10).ef(4 * limit)
        where = predicate(scope)
        query = (query.where(where) if where else query).select([*FOUND, "_distance"]).limit(limit)
        found = await query.to_arrow()
        return _hits(found, 1.0 - found["_distance"].to_numpy())

    async def matching(self, text: str, scope: Scope, limit: int) -> list[Hit]:
        """The chunks that hold words of `text`, best first; `score` is BM25's."""
        query = self._chunks.query().nearest_to_text(text, columns="terms")
        where = predicate(scope)
        query = (query.where(where) if where else query).select([*FOUND, "_score"]).limit(limit)
        found = await query.to_arrow()
        return _hits(found, found["_score"].to_numpy())

    async def naming(
        self, entities: Sequence[str], scope: Scope, but: str
    ) -> list[tuple[str, str, str, tuple[str, ...]]]:
        """Document, revision, text and entities of the chunks that name one of `entities`, in documents other than
        `but`."""
        listed = ", ".join(quoted(entity) for entity in entities)
        where = f"array_has_any(entities, [{listed}]) AND document_id != {quoted(but)}"
        seen = predicate(scope)
        query = self._chunks.query().where(f"{where} AND {seen}" if seen else where)
        rows = (
            await query.select(["document_id", "revision", "start", "end", "terms", "entities"]).to_arrow()
        ).to_pylist()
        return [(row["document_id"], row["revision"], _text(row), tuple(row["entities"])) for row in rows]

    async def revisions(self) -> dict[tuple[str, str], datetime]:
        """Every (document, revision) that has rows, and when they were written."""
        columns = ["document_id", "revision", "written_at"]
        tables = [await table.query().select(columns).to_arrow() for table in (self._documents, self._chunks)]
        return await asyncio.to_thread(_distinct, tables)

    async def upkeep(self, force: bool = False) -> bool:
        """Join small files, index what is new, forget old versions; whether it was time for that."""
        if not force and self._writes < WRITES_PER_UPKEEP:
            return False
        async with self._turn:
            self._writes = 0
            if await self._chunks.count_rows("vector IS NOT NULL") >= EXACT_ROWS:
                await self._index_rows()
            for table in (self._documents, self._chunks):
                await table.optimize(cleanup_older_than=KEEP_VERSIONS)
        return True

    async def _index_rows(self) -> None:
        indexed = {column for index in await self._chunks.list_indices() for column in index.columns}
        kinds = {"vector": HnswSq(distance_type="dot"), "document_id": BTree(), "owner": Bitmap()}
        for column, kind in kinds.items():
            if column not in indexed:
                await self._chunks.create_index(column, config=kind)


def quoted(text: str) -> str:
    """A string literal of LanceDB's SQL."""
    return "'" + text.replace("'", "''") + "'"


def predicate(scope: Scope) -> str:
    """The filter in LanceDB's SQL; "" where every row may be seen."""
    filters = scope.filters
    parts = [] if scope.owner is None else [f"(public OR owner = {quoted(scope.owner)})"]
    columns: Iterable[tuple[str, tuple[str, ...]]] = (
        ("document_id", filters.document_ids),
        ("document_type", filters.document_types),
        ("category", filters.categories),
    )
    for column, values in columns:
        if values:
            parts.append(f"{column} IN ({', '.join(map(quoted, values))})")
    if filters.tags:
        parts.append(f"array_has_any(tags, [{', '.join(map(quoted, filters.tags))}])")
    return " AND ".join(parts)


def _hits(found: pa.Table, scores: NDArray[Any]) -> list[Hit]:
    column = found["vector"].combine_chunks()
    # Row by row a vector would become 384 Python numbers; flattened, the rows without one are left out.
    vectors = iter(column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size))
    has_vector = column.is_valid().to_pylist()
    hits = []
    for row, has, score in zip(found.drop_columns(["vector"]).to_pylist(), has_vector, scores, strict=True):
        fields = {name: row[name] for name in FOUND if name not in ("terms", "vector", "entities")}
        vector = next(vectors) if has else None
        hits.append(Hit(**fields, text=_text(row), entities=tuple(row["entities"]), vector=vector, score=float(score)))
    return hits


def _distinct(tables: list[pa.Table]) -> dict[tuple[str, str], datetime]:
    rows = pa.concat_tables(tables).group_by(["document_id", "revision"]).aggregate([("written_at", "max")])
    names = zip(rows["document_id"].to_pylist(), rows["revision"].to_pylist(), strict=True)
    return dict(zip(names, rows["written_at_max"].to_pylist(), strict=True))


def _text(row: dict[str, Any]) -> str:
    # The text is kept once: it ends the terms.
    return row["terms"][row["start"] - row["end"] :]
