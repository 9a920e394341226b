"""A run's texts: made once, so that all its stages and attempts train and measure on the same."""

from pathlib import Path

from train.data.sources import Corpus, Document, corpus, read_documents, write_documents
from train.manifest import write_durably
from train.phases.phase import PhaseConfig

TRAINING, HELD_OUT = "training.jsonl", "held_out.jsonl"


def prepare(folder: Path, root: Path, config: PhaseConfig) -> None:
    """Write the texts, unless they are there."""
    if (folder / "digest").exists():
        return
    made = corpus(root, config.held_out, config.seed)
    write_durably(folder / TRAINING, lambda file: write_documents(file, made.training))
    write_durably(folder / HELD_OUT, lambda file: write_documents(file, made.held_out))
    write_durably(folder / "digest", lambda file: file.write(made.digest.encode()))


def texts(folder: Path) -> Corpus:
    """What `prepare` wrote."""
    return Corpus(tuple(read_documents(folder / TRAINING)), tuple(read_documents(folder / HELD_OUT)))


def held_out(folder: Path) -> tuple[Document, ...]:
    """The documents that nothing trains on."""
    return tuple(read_documents(folder / HELD_OUT))
