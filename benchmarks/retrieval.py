"""Retrieval on Cranfield and MuSiQue: quality, latency, ingestion, beside LlamaIndex's in-memory index.

    python -m benchmarks.retrieval DATA          # figures -> benchmarks/results/retrieval.json
    python -m benchmarks.retrieval DATA --fit    # and the calibration -> configs/knowledge.yaml

DATA holds `cranfield/` (cran_docs.json, cran_queries.json, cran_qrels.json) and `musique/` (musique_train.json,
musique_train_corpus.json); the project does not ship them.
"""

import argparse
import asyncio
import json
import os
import re
import resource
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import log2
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import yaml
from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document as LlamaDocument

from benchmarks.calibrate import Example, fit_all
from cluster.errors import Unavailable
from cluster.identity.model import SYSTEM
from cluster.settings import Settings
from cluster.store import Store, server
from rag import calibration, retrieval
from rag.embedding import Embedder
from rag.index import Scope
from rag.model import Filters, Mode
from rag.service import Knowledge

RESULTS = Path(__file__).parent / "results" / "retrieval.json"
POOL = 40  # chunks fetched for ten documents, as the service does


@dataclass(frozen=True)
class Case:
    """A query and the gain of each document that answers it."""

    query: str
    gains: Mapping[str, float]
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Collection:
    """Documents by id and the queries over them."""

    name: str
    documents: Mapping[str, tuple[str, str]]  # title, text
    cases: Sequence[Case]


def cranfield(folder: Path) -> Collection:
    """The Cranfield 2 collection; gain is 5 - position."""
    documents = {
        f"doc_cran_{d['id']}": (d["title"][:300], d["body"])
        for d in _read(folder / "cran_docs.json")
        if d["body"].strip()
    }
    gains: dict[int, dict[str, float]] = {}
    for row in _read(folder / "cran_qrels.json"):
        gains.setdefault(int(row["query_num"]), {})[f"doc_cran_{row['id']}"] = max(0.0, 5.0 - row["position"])
    queries = _read(folder / "cran_queries.json")
    return Collection("cranfield", documents, [Case(q["query"], gains[q["query number"]]) for q in queries])


def musique(folder: Path) -> Collection:
    """MuSiQue's sample: a question's supporting paragraphs among all of them."""
    corpus = _read(folder / "musique_train_corpus.json")
    documents = {f"doc_mus_{n}": (d["title"][:300], d["text"]) for n, d in enumerate(corpus)}
    by_text = {text: name for name, (_, text) in documents.items()}
    cases = []
    for row in _read(folder / "musique_train.json"):
        wanted = [p["paragraph_text"] for p in row["paragraphs"] if p["is_supporting"]]
        gains = {by_text[text]: 1.0 for text in wanted if text in by_text}
        cases.append(Case(row["question"], gains, (row["answer"], *row.get("answer_aliases", ()))))
    return Collection("musique", documents, cases)


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def ndcg(ranked: Sequence[str], gains: Mapping[str, float], k: int = 10) -> float:
    """Normalised discounted cumulative gain (Järvelin and Kekäläinen 2002)."""
    got = sum(gains.get(name, 0.0) / log2(rank + 2) for rank, name in enumerate(ranked[:k]))
    ideal = sum(gain / log2(rank + 2) for rank, gain in enumerate(sorted(gains.values(), reverse=True)[:k]))
    return got / ideal if ideal else 0.0


def recall(ranked: Sequence[str], gains: Mapping[str, float], k: int = 10) -> float:
    """Share of the relevant documents among the first k."""
    relevant = {name for name, gain in gains.items() if gain > 0}
    return len(relevant & set(ranked[:k])) / len(relevant) if relevant else 0.0


def figures(rankings: Sequence[Sequence[str]], cases: Sequence[Case], seconds: Sequence[float]) -> dict[str, float]:
    """Means of quality, percentiles of latency."""
    pairs = list(zip(rankings, cases, strict=True))
    p50, p95 = np.percentile(np.array(seconds) * 1000, [50, 95])
    return {
        "ndcg@10": round(float(np.mean([ndcg(r, c.gains) for r, c in pairs])), 4),
        "recall@10": round(float(np.mean([recall(r, c.gains) for r, c in pairs])), 4),
        "p50_ms": round(float(p50), 2),
        "p95_ms": round(float(p95), 2),
    }


async def ours(knowledge: Knowledge, collection: Collection) -> dict[str, Any]:
    """Ingestion through `add`, then every mode through `query`."""
    begun, chunks = perf_counter(), 0
    for name, (title, text) in collection.documents.items():
        added = await knowledge.add(
            SYSTEM, text, {"title": title, "category": collection.name}, "sentence", document_id=name
        )
        chunks += added.chunks_created
    seconds = perf_counter() - begun
    found: dict[str, Any] = {"documents_per_s": round(len(collection.documents) / seconds, 1)}
    found |= {"chunks": chunks, "chunks_per_s": round(chunks / seconds, 1)}
    await knowledge.index.upkeep(force=True)
    for mode in Mode:
        rankings, times, held = [], [], 0
        for case in collection.cases:
            begun = perf_counter()
            answer = await knowledge.query(SYSTEM, case.query, 10, mode=mode, filters={"categories": [collection.name]})
            times.append(perf_counter() - begun)
            rankings.append([source.document_id for source in answer.sources])
            held += any(a.lower() in answer.answer.lower() for a in case.answers)
        found[mode] = figures(rankings, collection.cases, times)
        if any(case.answers for case in collection.cases):
            found[mode]["answer_holds_gold"] = round(held / len(collection.cases), 4)
    return found


class _Ours(BaseEmbedding):
    """The same embedder behind LlamaIndex's interface, for the peer."""

    embedder: Any = None

    def _get_text_embedding(self, text: str) -> list[float]:
        return self.embedder([text])[0].tolist()

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self.embedder(texts).tolist()

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def peer(embedder: Embedder, collection: Collection) -> dict[str, Any]:
    """LlamaIndex's VectorStoreIndex in memory, its sentence splitter at the embedder's window, the same embedder."""
    model = _Ours(embedder=embedder, embed_batch_size=64)
    documents = [
        LlamaDocument(text=t, id_=name, metadata={"title": h}) for name, (h, t) in collection.documents.items()
    ]
    begun = perf_counter()
    # Its own sentence cutter opens nltk's files, which refuses an environment of hard links.
    splitter = SentenceSplitter(
        chunk_size=256,
        chunk_overlap=20,
        chunking_tokenizer_fn=lambda text: list(filter(None, re.split(r"(?<=[.!?]\s)", text))),
    )
    index = VectorStoreIndex.from_documents(documents, transformations=[splitter], embed_model=model)
    found: dict[str, Any] = {"documents_per_s": round(len(documents) / (perf_counter() - begun), 1)}
    retriever = index.as_retriever(similarity_top_k=POOL)
    rankings, times = [], []
    for case in collection.cases:
        begun = perf_counter()
        nodes = retriever.retrieve(case.query)
        times.append(perf_counter() - begun)
        rankings.append(list(dict.fromkeys(str(node.node.ref_doc_id) for node in nodes))[:10])
    return found | figures(rankings, collection.cases, times)


async def examples(knowledge: Knowledge, collection: Collection) -> list[Example]:
    """What calibration is fitted on: each query's ten documents with evidence and verdict, and once more without
    those that answer it, because a confidence has to know a question that the documents do not answer."""
    fitted = knowledge.config.calibration
    made = []
    for number, case in enumerate(collection.cases):
        vector = knowledge.embedder([case.query])[0]
        scope = Scope(None, Filters(categories=(collection.name,)))
        for keywords_only in (False, True):
            given = None if keywords_only else vector
            hits = await retrieval.candidates(knowledge.index, case.query, given, scope, POOL + 30)
            for withheld in (False, True):
                left = [hit for hit in hits if not (withheld and case.gains.get(hit.document_id))]
                passages = retrieval.by_document(retrieval.weigh(case.query, given, left, fitted))[:10]
                verdicts = [bool(case.gains.get(p.hit.document_id)) for p in passages]
                rows = [(p.cosine or 0.0, p.coverage) for p in passages]
                cosine, covered = retrieval.evidence(passages)
                made.append(
                    Example(
                        f"{collection.name}-{number}", not keywords_only, withheld, rows, verdicts,
                        (cosine or 0.0, covered), any(verdicts[:3]),
                        [p.hit.document_id for p in passages], dict(case.gains),
                    )
                )  # fmt: skip
    return made


async def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--fit", action="store_true")
    arguments = parser.parse_args()
    collections = [cranfield(arguments.data / "cranfield"), musique(arguments.data / "musique")]
    with tempfile.TemporaryDirectory(prefix="village-bench-") as name:
        home = Path(name)
        process = server.start(home, home / "redis.sock")
        store = Store(f"unix://{home}/redis.sock")
        try:
            await _answers(store)
            knowledge = await Knowledge.open(Settings(home=home), store)
            await knowledge.warm_up()
            found: dict[str, Any] = {"at": datetime.now(UTC).date().isoformat(), "embedder": knowledge.embedder.name}
            found["load_average_at_start"] = round(os.getloadavg()[0], 1)  # the machine is shared
            for collection in collections:
                own = await ours(knowledge, collection)
                found[collection.name] = {"ours": own}
                found[collection.name]["llama_index_in_memory"] = peer(knowledge.embedder, collection)
            if arguments.fit:
                made = [example for c in collections for example in await examples(knowledge, c)]
                write_calibration(fit_all(made), " and ".join(c.name for c in collections))
            found["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            await knowledge.close()
        finally:
            await store.close()
            process.kill()
    print(json.dumps(found, indent=2))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


async def _answers(store: Store) -> None:
    for _ in range(500):
        try:
            await store.ping()
            return
        except Unavailable:
            await asyncio.sleep(0.02)
    raise SystemExit("redis-server does not answer")


def write_calibration(fitted: dict[str, Any], on: str) -> None:
    """Put the fit into the configuration, beside what people tune there."""
    config = yaml.safe_load(calibration.CONFIG.read_text())
    config["calibration"] = fitted | {"fitted_at": datetime.now(UTC).date(), "fitted_on": on}
    text = "# rag.calibration.KnowledgeConfig (the calibration is written by benchmarks/retrieval.py --fit)\n"
    calibration.CONFIG.write_text(text + yaml.safe_dump(config, sort_keys=False))
    calibration.load()


if __name__ == "__main__":
    asyncio.run(main())
