"""Documents to rows of one length, and rows to an endless sequence of batches that can be taken up anywhere. Pure."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

IGNORED = -100  # a position without a target; torch's cross entropy skips it
Tokens = Sequence[int] | np.ndarray  # ids of one document
OPEN_ROWS = 32  # rows that wait for a document that fits


class Batch(NamedTuple):
    """Rows of tokens (B, T), their next tokens (B, T; IGNORED where there is none) and document numbers (B, T)."""

    tokens: np.ndarray
    targets: np.ndarray
    documents: np.ndarray


class Position(NamedTuple):
    """Where in the data a run is: the next row is row `row` of epoch `epoch`."""

    epoch: int = 0
    row: int = 0


START = Position()


def pack(documents: Sequence[Tokens], context: int) -> list[list[Tokens]]:
    """Rows of whole documents, at most `context` tokens each; a longer document is cut. Best fit among open rows."""
    rows: list[list[Tokens]] = []
    room: list[tuple[int, list[Tokens]]] = []
    pieces = (document[i : i + context] for document in documents for i in range(0, len(document), context))
    for piece in pieces:
        best = min((i for i, (left, _) in enumerate(room) if left >= len(piece)), key=lambda i: room[i][0], default=-1)
        left, row = room.pop(best) if best >= 0 else (context, [])
        row.append(piece)
        room.append((left - len(piece), row))
        if len(room) > OPEN_ROWS:
            fullest = min(range(len(room)), key=lambda i: room[i][0])
            rows.append(room.pop(fullest)[1])
    return rows + [row for _, row in room]


def batch(rows: Sequence[Sequence[Tokens]], context: int, pad: int) -> Batch:
    """Rows of documents -> arrays (rows, context) of int64. A document's last token has no target."""
    tokens = np.full((len(rows), context), pad, dtype=np.int64)
    targets = np.full_like(tokens, IGNORED)
    documents = np.zeros_like(tokens)  # 0 is padding
    for r, row in enumerate(rows):
        start = 0
        for number, piece in enumerate(row, start=1):
            end = start + len(piece)
            tokens[r, start:end] = piece
            targets[r, start : end - 1] = piece[1:]
            documents[r, start:end] = number
            start = end
    return Batch(tokens, targets, documents)


class Batches:
    """Batches for ever.

    An epoch takes each source's documents `mix[source]` times: 2.5 is twice, and half of them
    again.

    `part` (rank, world) leaves a worker every world-th row of each batch of `size`.
    """

    def __init__(
        self, documents: Mapping[str, Sequence[Tokens]], mix: Mapping[str, float], *,
        context: int, size: int, pad: int, seed: int, position: Position = START, part: tuple[int, int] = (0, 1),
    ) -> None:  # fmt: skip
        self.documents, self.mix, self.part = documents, mix, part
        self.context, self.size, self.pad, self.seed = context, size, pad, seed
        self.position = position
        self._packed: tuple[int, list[list[Tokens]]] = (-1, [])

    def epoch(self, number: int) -> Sequence[Any]:
        """The rows of that epoch, in their order."""
        if self._packed[0] != number:
            chance = random.Random(f"{self.seed}:{number}")
            chosen: list[Tokens] = []
            for source in sorted(self.documents):
                whole, part = divmod(self.mix.get(source, 1.0), 1.0)
                all_of_it = self.documents[source]
                chosen += list(all_of_it) * int(whole) + chance.sample(all_of_it, int(part * len(all_of_it)))
            chance.shuffle(chosen)
            rows = pack(chosen, self.context)
            chance.shuffle(rows)
            self._packed = (number, rows)
        return self._packed[1]

    def __iter__(self) -> Iterator[Batch]:
        """Go on from `position`, which is always that of the next batch. An epoch's end does not shorten a batch."""
        while True:
            rows: list[Any] = []
            epoch, row = self.position
            while len(rows) < self.size:
                packed = self.epoch(epoch)
                if not len(packed):
                    raise ValueError("there are no documents to train on")
                taken = packed[row : row + self.size - len(rows)]
                rows += taken
                row += len(taken)
                if row >= len(packed):
                    epoch, row = epoch + 1, 0
            self.position = Position(epoch, row)
            rank, world = self.part
            yield self.made(rows[rank::world])

    def made(self, rows: Sequence[Any]) -> Batch:
        """A batch of some rows of `epoch`."""
        return batch(rows, self.context, self.pad)
