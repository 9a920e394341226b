"""What a task's `dataset` may be, and which part of it is this rank's.

A dataset is a name: of text that the project ships, or of a file that the operator of this machine has named with
`--data NAME=PATH`. Nothing is fetched, and no name of a task's is ever a path.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from cluster.errors import Invalid
from train.data.sources import CORPUS, Corpus, Document, corpus, is_held_out
from train.model.tokenizer import Tokenizer, Turn

T = TypeVar("T")
WHOLE = "corpus"
BUILT_IN = (WHOLE, "dialogue", "capitals", "sums", "shakespeare", "conversation")
HELD_OUT = 0.04  # share of documents, by their content: the same ones on every rank
CORPUS_SEED = 42
SEGMENT = 2000  # characters of a text that are a document
VOCABULARY = 2048
ROLES = frozenset({"system", "user", "assistant"})


def shard(items: Sequence[T], rank: int, world_size: int) -> list[T]:
    """This rank's items. The shards of all ranks are disjoint, together everything, and differ by one at most."""
    return list(items[rank::world_size])


def shipped() -> Corpus:
    """The text that every installation has alike: without the project's own pages, which differ between versions."""
    whole = corpus(CORPUS.parent, HELD_OUT, CORPUS_SEED)
    return Corpus(
        tuple(document for document in whole.training if document.source != "project"),
        tuple(document for document in whole.held_out if document.source != "project"),
    )


def tokenizer() -> Tokenizer:
    """The one that a model from nothing starts with: of the shipped text, whatever the dataset is.

    So ranks that hold different text cut it alike, and their weights can be averaged.
    """
    documents = shipped().training
    return Tokenizer.train((d.text or "\n".join(turn.content for turn in d.turns) for d in documents), VOCABULARY)


def dataset(name: str | None, local: Mapping[str, Path]) -> Corpus:
    """Text to learn from and text held out, of a task's `dataset`; None is everything shipped. Raises `Invalid`."""
    wanted = name or WHOLE
    if wanted in local:
        return split(wanted, read(wanted, local[wanted]))
    if wanted not in BUILT_IN:
        raise Invalid(f"this worker does not have dataset {wanted!r}; it has {', '.join((*BUILT_IN, *local))}")
    whole = shipped()
    if wanted == WHOLE:
        return whole
    training = tuple(document for document in whole.training if document.source == wanted)
    held_out = tuple(document for document in whole.held_out if document.source == wanted)
    return Corpus(training, held_out) if held_out else split(wanted, training)


def split(name: str, documents: Sequence[Document]) -> Corpus:
    """Without repetitions, in the order of their fingerprints, at least one of them held out. Raises `Invalid`."""
    unique = sorted({document.fingerprint: document for document in documents}.items())
    if len(unique) < 2:
        raise Invalid(f"dataset {name!r} has fewer than two documents")
    held_out = [document for _, document in unique if is_held_out(document, HELD_OUT)] or [unique[0][1]]
    kept = {document.fingerprint for document in held_out}
    training = tuple(document for print_, document in unique if print_ not in kept) or (unique[-1][1],)
    return Corpus(training, tuple(document for document in held_out if document not in training))


def read(name: str, path: Path) -> list[Document]:
    """A text file, a .jsonl of `{"text": ...}` or `{"messages": [...]}`, or a folder of these. Raises `Invalid`."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    documents: list[Document] = []
    for file in files:
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            # The farm is told the name, not where things lie on this machine.
            raise Invalid(f"dataset {name!r} cannot be read: {type(error).__name__}") from error
        documents += records(name, text) if file.suffix == ".jsonl" else (Document(name, part) for part in parts(text))
    return documents


def records(name: str, text: str) -> Iterator[Document]:
    """The documents of a JSON Lines file. Raises `Invalid`."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if "messages" in record:
                turns = tuple(Turn(str(m["role"]), str(m["content"])) for m in record["messages"])
                if not turns or not ROLES.issuperset(turn.role for turn in turns):
                    raise ValueError
                yield Document(name, turns=turns)
            else:
                yield from (Document(name, part) for part in parts(str(record["text"])))
        except (ValueError, KeyError, TypeError) as error:
            raise Invalid(f"dataset {name!r}: line {number} has neither a text nor messages") from error


def parts(text: str, most: int = SEGMENT) -> list[str]:
    """A text as stretches of whole paragraphs, of at most `most` characters; a longer paragraph is cut."""
    found: list[str] = []
    room = 0
    for paragraph in re.split(r"\n\s*\n", text):
        for start in range(0, len(paragraph), most):
            piece = paragraph[start : start + most].strip()
            if not piece:
                continue
            if room >= len(piece) + 2:
                found[-1] += "\n\n" + piece
                room -= len(piece) + 2
            else:
                found.append(piece)
                room = most - len(piece)
    return found
