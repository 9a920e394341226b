"""A run's texts: made once, so that all its stages and attempts train and measure on the same."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from train.data.sources import Corpus, Document, corpus
from train.manifest import write_durably
from train.model.tokenizer import Turn
from train.phases.phase import PhaseConfig

TRAINING, HELD_OUT = "training.jsonl", "held_out.jsonl"


def prepare(folder: Path, root: Path, config: PhaseConfig) -> None:
    """Write the texts, unless they are there."""
    if (folder / "digest").exists():
        return
    made = corpus(root, config.held_out, config.seed)
    write_durably(folder / TRAINING, lambda file: _write(file, made.training))
    write_durably(folder / HELD_OUT, lambda file: _write(file, made.held_out))
    write_durably(folder / "digest", lambda file: file.write(made.digest.encode()))


def texts(folder: Path) -> Corpus:
    """What `prepare` wrote."""
    return Corpus(tuple(_read(folder / TRAINING)), tuple(_read(folder / HELD_OUT)))


def held_out(folder: Path) -> tuple[Document, ...]:
    """The documents that nothing trains on."""
    return tuple(_read(folder / HELD_OUT))


def _write(file: BinaryIO, documents: Iterable[Document]) -> None:
    for document in documents:
        line = {"source": document.source, "text": document.text, "turns": [list(turn) for turn in document.turns]}
        file.write(json.dumps(line).encode() + b"\n")


def _read(path: Path) -> Iterator[Document]:
    with path.open("rb") as file:
        for line in file:
            read = json.loads(line)
            yield Document(read["source"], read["text"], tuple(Turn(*turn) for turn in read["turns"]))
