"""What a stage trains on: batches packed in memory, or, of a corpus too large for that, from packed files."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from train.data.mapped import INDEX, MappedRows
from train.data.packing import Batches
from train.data.prepared import TRAINING, shards, streamed
from train.data.sources import Document, read_documents
from train.model.learner import Learner
from train.phases.phase import Work
from train.resumable import together


class Feed:
    """Batches for one learner, of any mix and seed; texts are tokenized once."""

    def __init__(self, learner: Learner, work: Work, documents: Sequence[Document], size: int, context: int) -> None:
        self.learner, self.work, self.size, self.context = learner, work, size, context
        self.streamed = streamed(work.data)
        self.ids = {} if self.streamed else by_source(learner, documents)

    def batches(self, mix: Mapping[str, float], seed: int) -> Batches:
        """This worker's share. Every worker calls it."""
        part = (self.work.rank, self.work.world)
        if self.streamed:
            return self._mapped(mix, seed, part)
        return Batches(
            self.ids, mix, context=self.context, size=self.size, pad=self.learner.pad, seed=seed, part=part
        )  # fmt: skip

    def _mapped(self, mix: Mapping[str, float], seed: int, part: tuple[int, int]) -> MappedRows:
        """Rows of the whole corpus, packed once for each mix; how often a document is taken is the same every epoch."""
        wanted = json.dumps([sorted(mix.items()), self.context, self.learner.tokenizer_digest])
        folder = self.work.folder / "rows" / hashlib.sha256(wanted.encode()).hexdigest()[:16]
        if self.work.rank == 0 and not (folder / INDEX).exists():
            from train.datasets import Packing, pack_rows

            documents = (*read_documents(self.work.data / TRAINING), *self.learner.replay)
            packing = Packing(self.learner.tokenizer, dict(mix), self.context, self.learner.pad)
            pack_rows(packing, documents, shards(self.work.data), folder)
        together(self.work)
        return MappedRows(folder, size=self.size, seed=seed, part=part)


def by_source(learner: Learner, documents: Sequence[Document]) -> dict[str, list[np.ndarray]]:
    """Every document's ids (tokens,) int32, by source."""
    found: dict[str, list[np.ndarray]] = {}
    for document in documents:
        found.setdefault(document.source, []).append(np.array(learner.ids(document), dtype=np.int32))
    return found
