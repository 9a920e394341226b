"""Search: LlamaIndex retrievers over our index, fused, and what each passage found is worth.

Fusion is of scores (each search's scaled to 0..1, then their mean), not of ranks: nDCG@10 on Cranfield 0.559 against
0.555 by reciprocal rank, on MuSiQue 0.659 against 0.631, where words alone mislead and ranks give them half the say.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llama_index.core.llms import MockLLM
from llama_index.core.retrievers import BaseRetriever, QueryFusionRetriever
from llama_index.core.retrievers.fusion_retriever import FUSION_MODES
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from rag.calibration import Calibration
from rag.index import ChunkIndex, Hit, Scope, Vector
from rag.words import coverage, stems


@dataclass(frozen=True)
class Passage:
    """A chunk that was found, with the evidence for it. `cosine` is None where there is no vector to compare."""

    hit: Hit
    cosine: float | None
    coverage: float
    relevance: float


class _Indexed(BaseRetriever):
    """What both retrievers share; `found` keeps the hits behind the nodes of the last retrieval."""

    def __init__(self, index: ChunkIndex, scope: Scope, limit: int) -> None:
        super().__init__()
        self.index, self.scope, self.limit = index, scope, limit
        self.found: dict[str, Hit] = {}

    def _nodes(self, hits: Iterable[Hit]) -> list[NodeWithScore]:
        self.found = {hit.chunk_id: hit for hit in hits}
        # Fusion knows a node by its text and metadata: the same words in two documents stay two passages.
        return [
            NodeWithScore(node=TextNode(id_=name, text=hit.text, metadata={"chunk_id": name}), score=hit.score)
            for name, hit in self.found.items()
        ]

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        raise NotImplementedError("the index is asynchronous: use aretrieve")


class VectorRetriever(_Indexed):
    """The chunks nearest to the query's embedding."""

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        assert query_bundle.embedding is not None
        vector = np.asarray(query_bundle.embedding, dtype=np.float32)
        return self._nodes(await self.index.near(vector, self.scope, self.limit))


class KeywordRetriever(_Indexed):
    """The chunks that BM25 ranks best."""

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._nodes(await self.index.matching(query_bundle.query_str, self.scope, self.limit))


class _NoLLM(MockLLM):
    """The fusion retriever asks for a model to invent further queries with; with one query it never calls it."""


async def candidates(
    index: ChunkIndex, query: str, vector: Vector | None, scope: Scope, limit: int, keywords: bool = True
) -> list[Hit]:
    """Up to `limit` chunks, best first: by vector, by keywords, or by both fused."""
    retrievers: list[_Indexed] = []
    if vector is not None:
        retrievers.append(VectorRetriever(index, scope, limit))
    if keywords:
        retrievers.append(KeywordRetriever(index, scope, limit))
    asked = QueryBundle(query, embedding=None if vector is None else vector.tolist())
    if len(retrievers) == 1:
        return [retrievers[0].found[node.node_id] for node in await retrievers[0].aretrieve(asked)]
    parts: Any = retrievers
    fusion = QueryFusionRetriever(
        parts, llm=_NoLLM(max_tokens=None), mode=FUSION_MODES.RELATIVE_SCORE, similarity_top_k=limit, num_queries=1
    )
    fused = await fusion.aretrieve(asked)
    found = {name: hit for retriever in retrievers for name, hit in retriever.found.items()}
    return [found[node.node_id] for node in fused]


def weigh(query: str, vector: Vector | None, hits: Sequence[Hit], calibration: Calibration) -> list[Passage]:
    """Each hit with its evidence, the order unchanged. Pure."""
    asked = stems(query)
    passages = []
    for hit in hits:
        cosine = None if vector is None or hit.vector is None else float(hit.vector @ vector)
        covered = coverage(asked, f"{hit.heading} {hit.text}")
        passages.append(Passage(hit, cosine, covered, calibration.relevance(cosine, covered)))
    return passages


def by_document(passages: Iterable[Passage]) -> list[Passage]:
    """The best passage of each document. Pure."""
    best: dict[str, Passage] = {}
    for passage in passages:
        best.setdefault(passage.hit.document_id, passage)
    return list(best.values())


def evidence(passages: Sequence[Passage]) -> tuple[float | None, float]:
    """What `Calibration.confidence` takes: best cosine and best coverage among the first three. Pure."""
    first = passages[:3]
    cosines = [passage.cosine for passage in first if passage.cosine is not None]
    return (max(cosines) if cosines else None), max((passage.coverage for passage in first), default=0.0)
