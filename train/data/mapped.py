"""Packed rows in files, mapped into memory: what a corpus that is larger than memory is trained from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.data.packing import IGNORED, START, Batch, Batches, Position, Tokens, batch, pack
from train.manifest import write_durably

INDEX = "index.json"


def write_rows(path: Path, documents: Sequence[Tokens], context: int, pad: int, vocab_size: int) -> int:
    """Pack documents and write their rows: an array (rows, 2, context) of ids and document numbers. Returns rows."""
    kind = np.uint16 if max(vocab_size, context) < 1 << 16 else np.int32
    tokens, _, numbers = batch(pack(documents, context), context, pad)
    rows = np.stack((tokens, numbers), axis=1).astype(kind)
    write_durably(path, lambda file: np.save(file, rows))
    return len(rows)


def write_index(folder: Path, files: dict[str, int]) -> None:
    """The folder is complete: `files` are its files and how many rows each has."""
    write_durably(folder / INDEX, lambda file: file.write(json.dumps(files, sort_keys=True).encode()))


class Files(Sequence[Any]):
    """All rows of the folder in the order of `order`; each (2, context) is read when it is asked for."""

    def __init__(self, arrays: Sequence[np.ndarray], order: np.ndarray) -> None:
        self.arrays, self.order = arrays, order
        self.starts = np.cumsum([0, *(len(array) for array in arrays)])

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = self.order[index]
        which = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.arrays[which][number - self.starts[which]]


class MappedRows(Batches):
    """Batches for ever, as `Batches` has them, of rows that `write_rows` left: every epoch takes each row once.

    The order of an epoch follows from the seed and its number alone, so a run that was broken off goes on exactly.
    """

    def __init__(
        self, folder: Path, *, size: int, seed: int, position: Position = START, part: tuple[int, int] = (0, 1)
    ) -> None:
        files = json.loads((folder / INDEX).read_text())
        self.arrays = [np.load(folder / name, mmap_mode="r") for name, rows in sorted(files.items()) if rows]
        self.count = sum(len(array) for array in self.arrays)
        self.size, self.seed, self.position, self.part = size, seed, position, part
        self._ordered: tuple[int, Files] = (-1, Files((), np.zeros(0, np.int64)))

    def epoch(self, number: int) -> Any:
        """The rows of that epoch, in their order."""
        if self._ordered[0] != number:
            order = np.random.default_rng((self.seed, number)).permutation(self.count)
            self._ordered = (number, Files(self.arrays, order))
        return self._ordered[1]

    def made(self, rows: Sequence[Any]) -> Batch:
        """(2, context) each -> a batch."""
        both = np.stack(rows).astype(np.int64)  # (B, 2, T)
        tokens, documents = both[:, 0], both[:, 1]
        targets = np.full_like(tokens, IGNORED)
        inside = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] > 0)
        targets[:, :-1][inside] = tokens[:, 1:][inside]
        return Batch(tokens, targets, documents)
