"""From passages to an answer: sentences of the sources with citations, or a prompt for a model that may write. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.clock import iso
from rag import graph
from rag.calibration import KnowledgeConfig, WriterRule
from rag.chunking import HEADING, Embed, sentences
from rag.index import Vector
from rag.model import Answer, AnswerMode, DocumentRecord, Mode, Source, Writer
from rag.request import Question
from rag.retrieval import Passage, by_document, evidence
from rag.words import coverage, stems

GRAPH_PASSAGES = 20  # whose sentences a query's paths run through
SENTENCES = 3  # of an extractive answer
CANDIDATES = 8  # sentences that are compared by meaning: embedding them is most of a query's time
PASSAGES = 5
NEAR_BEST = 0.75  # a further sentence must reach this share of the best one's score
SAME = 0.8  # share of stems from which two sentences say the same
NOTHING = "No document that you may see answers this."
UNSURE = "The documents that you may see hold nothing that is likely to answer this; the sources are the nearest."


@dataclass(frozen=True)
class Sentence:
    """A sentence of a source; `source` counts from 1, as it is cited."""

    text: str
    source: int
    score: float


@dataclass(frozen=True)
class Wanted:
    """How an answer is to be made: what was asked, for whom, and by whom it may be written."""

    question: Question
    include_sources: bool
    context: Mapping[str, Any]
    writer: Writer | None


def respond(
    wanted: Wanted, vector: Vector | None, passages: Sequence[Passage], records: Mapping[str, DocumentRecord],
    embed: Embed, config: KnowledgeConfig,
) -> Callable[[int], Answer]:  # fmt: skip
    """The answer from the passages found, best first; it is given its processing time (ms) last."""
    asked = wanted.question
    kept = [p for p in by_document(passages) if p.relevance >= asked.filters.confidence_threshold]
    kept = kept[: asked.max_results]
    thorough = asked.mode is Mode.COMPREHENSIVE
    cosine, covered = evidence(kept)
    confidence = config.calibration.confidence(0.0 if vector is not None and not kept else cosine, covered)
    trusted = bool(kept) and confidence >= config.min_confidence
    if trusted:
        mode, reason = answer_mode(wanted.writer, config.writer)
        text = compose(extract(asked.query, vector, kept, embed if thorough else None), wanted.include_sources)
    else:
        mode, reason = AnswerMode.EXTRACTIVE, "no source is likely enough to write from"
        text = UNSURE if kept else NOTHING
    paths = _paths(asked.query, passages, kept) if thorough else []
    return lambda processing_time_ms: Answer(
        query=asked.query,
        answer=text,
        sources=tuple(source(p, records[p.hit.document_id]) for p in kept) if wanted.include_sources else (),
        confidence=round(confidence, 4),
        knowledge_graph_paths=tuple(paths),
        processing_time_ms=processing_time_ms,
        answer_mode=mode,
        answer_mode_reason=reason,
        prompt=prompt(asked.query, kept, wanted.context) if mode is AnswerMode.GENERATIVE else "",
    )


def _paths(query: str, passages: Sequence[Passage], kept: Sequence[Passage]) -> list[graph.Path]:
    shown = {passage.hit.document_id for passage in kept}
    near = [p.hit for p in passages if p.hit.document_id in shown][:GRAPH_PASSAGES]
    return graph.paths(query, [some for hit in near for some in graph.together(hit.text, hit.entities)])


def source(passage: Passage, record: DocumentRecord) -> Source:
    """A passage as a source, with its document's metadata."""
    hit = passage.hit
    about = {"document_type": record.document_type, "category": record.category, "author": record.author}
    return Source(
        document_id=record.document_id,
        title=record.title,
        relevance_score=round(passage.relevance, 4),
        excerpt=hit.text,
        start=hit.start,
        end=hit.end,
        heading=hit.heading,
        metadata=record.metadata | about | {"tags": list(record.tags), "last_updated": iso(record.updated_at)},
    )


def answer_mode(writer: Writer | None, rule: WriterRule) -> tuple[AnswerMode, str]:
    """Whether the model that is served may write prose, and why. Decided by what was measured of it."""
    if writer is None:
        return AnswerMode.EXTRACTIVE, "no model was offered to write the answer"
    size = f"{writer.name} has {writer.parameters:,} parameters"
    if writer.held_out_loss is None:
        if writer.parameters >= rule.unmeasured_parameters:
            return AnswerMode.GENERATIVE, f"{size}; its loss was not measured"
        return AnswerMode.EXTRACTIVE, f"{size}, and nobody has measured its held-out loss"
    loss = f"held-out loss {writer.held_out_loss:.2f} nats per token"
    if writer.parameters < rule.min_parameters:
        return AnswerMode.EXTRACTIVE, f"{size}, {rule.min_parameters:,} are needed ({loss})"
    if writer.held_out_loss > rule.max_held_out_loss:
        return AnswerMode.EXTRACTIVE, f"{size}, but {loss} is above {rule.max_held_out_loss:g}"
    return AnswerMode.GENERATIVE, f"{size}, {loss}"


def extract(query: str, vector: Vector | None, passages: Sequence[Passage], embed: Embed | None) -> list[Sentence]:
    """The sentences of the best passages that are nearest to the query, in the order of their sources.

    By cosine and words where `embed` is given, by words alone otherwise; never two that say the same.
    """
    asked = stems(query)
    found = [
        Sentence(" ".join(passage.hit.text[start:end].split()), number, coverage(asked, passage.hit.text[start:end]))
        for number, passage in enumerate(passages[:PASSAGES], start=1)
        for start, end in sentences(passage.hit.text)
        if not HEADING.match(passage.hit.text, start)
    ]
    found = sorted(found, key=lambda s: (-s.score, s.source))[:CANDIDATES]
    if embed is not None and vector is not None and found:
        cosines = embed([sentence.text for sentence in found]) @ vector  # (n,)
        found = [replace(s, score=(float(c) + s.score) / 2) for s, c in zip(found, cosines, strict=True)]
        found = [found[i] for i in np.argsort([-s.score for s in found], kind="stable")]
    picked: list[Sentence] = []
    for sentence in found:
        if len(picked) == SENTENCES or sentence.score < NEAR_BEST * found[0].score:
            break
        if not any(_alike(sentence.text, other.text) for other in picked):
            picked.append(sentence)
    return sorted(picked, key=lambda s: s.source)


def _alike(one: str, other: str) -> bool:
    a, b = stems(one), stems(other)
    return bool(a and b) and len(a & b) >= SAME * min(len(a), len(b))


def compose(picked: Sequence[Sentence], cited: bool) -> str:
    """The answer's text, each sentence followed by its source's number."""
    return " ".join(f"{s.text} [{s.source}]" if cited else s.text for s in picked) or NOTHING


def prompt(query: str, passages: Sequence[Passage], context: Mapping[str, Any]) -> str:
    """What a model is asked that writes the answer itself. `context` (the reader's level, the domain) is passed on."""
    listed = "\n\n".join(f"[{n}] {passage.hit.text}" for n, passage in enumerate(passages[:PASSAGES], start=1))
    told = "; ".join(f"{key}: {value}" for key, value in context.items())
    return (
        "Answer the question from the numbered sources alone, in a few sentences, and cite them like [1]. "
        "Say so if they do not hold the answer.\n\n"
        f"{listed}\n\n{f'About the reader: {told}' if told else ''}\nQuestion: {query}\nAnswer:"
    )
