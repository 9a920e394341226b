"""A run's texts: made once, so that all its stages and attempts train and measure on the same.

In a run's data folder: `training.jsonl` (what the project ships), `shards/*.jsonl` (data sets of one's own, each
document once), `held_out.jsonl`, `report.json` and, last, the `digest` of all of it.
"""

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from train.causes import Cause, Failed
from train.data.contamination import Overlap
from train.data.sources import Corpus, Document, corpus, read_documents, write_documents
from train.manifest import write_durably
from train.phases.phase import PhaseConfig

TRAINING, HELD_OUT, SHARDS, REPORT, DIGEST = "training.jsonl", "held_out.jsonl", "shards", "report.json", "digest"
# Of shards; what is more is packed ahead of training and read from the disk (`train.data.feed`). Tokenizing and packing
# this much in a worker takes some ten seconds, about what it costs to have Ray Data do it.
IN_MEMORY_BYTES = 16 << 20


def prepare(folder: Path, root: Path, config: PhaseConfig) -> None:
    """Write the texts, unless they are there. Raises `Failed` for data that cannot be had or read."""
    if (folder / DIGEST).exists():
        return
    begun = time.monotonic()
    shipped = corpus(root, config.held_out, config.seed)
    held, counts, digest, contaminated = list(shipped.held_out), Counter[str](), shipped.digest, set[int]()
    if config.datasets:
        from train import datasets

        shutil.rmtree(folder / SHARDS, ignore_errors=True)
        with datasets.connected():
            gathered = datasets.gather(config.datasets, folder / SHARDS, config.held_out)
            held += gathered.held_out
            overlap = Overlap(held)
            contaminated = datasets.seen(shards(folder), overlap)
        counts, digest = gathered.counts, hashlib.sha256(f"{digest}{gathered.digest}".encode()).hexdigest()
    contaminated |= Overlap(held).seen(shipped.training)
    clean = [document for number, document in enumerate(held) if number not in contaminated]
    if not clean:
        raise Failed("every held-out document is in the training text too", Cause.DATA)
    report = {
        "training_documents": len(shipped.training) + counts["training"], "held_out_documents": len(clean),
        "contaminated_documents": len(contaminated), "duplicate_documents": counts["duplicates"],
        "unknown_rows": counts["unknown"], "dataset_bytes": counts["bytes"],
        "prepare_seconds": time.monotonic() - begun,
    }  # fmt: skip
    write_durably(folder / TRAINING, lambda file: write_documents(file, shipped.training))
    write_durably(folder / HELD_OUT, lambda file: write_documents(file, clean))
    write_durably(folder / REPORT, lambda file: file.write(json.dumps(report).encode()))
    write_durably(folder / DIGEST, lambda file: file.write(digest.encode()))


def texts(folder: Path) -> Corpus:
    """What `prepare` wrote; of shards that are too much for memory only a random sample of that size."""
    training, room = list(read_documents(folder / TRAINING)), IN_MEMORY_BYTES
    for document in sharded(folder):
        training.append(document)
        room -= document.size
        if room < 0 and streamed(folder):
            break
    return Corpus(tuple(training), held_out(folder))


def held_out(folder: Path) -> tuple[Document, ...]:
    """The documents that nothing trains on."""
    return tuple(read_documents(folder / HELD_OUT))


def report(folder: Path) -> dict[str, float]:
    """How many documents there are, and how many were left out and why."""
    return json.loads((folder / REPORT).read_bytes())


def shards(folder: Path) -> list[Path]:
    """Files of the data sets' documents. Which one a document is in is decided by its hash: each is a random sample."""
    return sorted((folder / SHARDS).glob("[0-9]*.jsonl"))


def sharded(folder: Path) -> Iterator[Document]:
    """The data sets' documents, shard by shard."""
    for path in shards(folder):
        yield from read_documents(path)


def streamed(folder: Path) -> bool:
    """Whether the data sets are too much for memory."""
    return sum(path.stat().st_size for path in shards(folder)) > IN_MEMORY_BYTES
