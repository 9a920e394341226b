"""Which held-out documents a model has seen all the same: text that training documents share with them. Pure.

Thirteen words in a row, as for GPT-3 (arXiv:2005.14165), whatever their case and punctuation. A text of fewer words is
seen where a whole training text is the same. Of a conversation the user's words count, and every exchange as a whole:
an answer that is known under another wording is what held-out conversations ask for.
"""

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from train.data.sources import Document

WORDS = 13
WORD = re.compile(r"\w+|[-+*/=<>]")  # a sum is not a difference
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that its powers lose nothing modulo 2^64


class Overlap:
    """The runs of words of held-out documents, to look training documents up in. Pickles."""

    def __init__(self, held_out: Sequence[Document]) -> None:
        found = [runs(document) for document in held_out]
        numbers = np.repeat(np.arange(len(found)), [len(each) for each in found])
        hashes = np.concatenate([np.zeros(0, np.uint64), *found])
        order = np.argsort(hashes, kind="stable")
        self.hashes, self.numbers = hashes[order], numbers[order]

    def seen(self, documents: Iterable[Document]) -> set[int]:
        """The numbers of held-out documents that share text with these."""
        return {number for document in documents for number in self._seen(document)}

    def _seen(self, document: Document) -> Iterator[int]:
        looked_up = runs(document)
        first = np.searchsorted(self.hashes, looked_up)
        last = np.searchsorted(self.hashes, looked_up, side="right")
        for low, high in zip(first[first < last], last[first < last], strict=True):
            yield from self.numbers[low:high].tolist()


def runs(document: Document) -> np.ndarray:
    """Hashes (n,) uint64 of what another document would share with this one."""
    if not document.turns:
        words = hashed(document.text)
        return of_length(words, WORDS) if len(words) >= WORDS else whole(words)
    found = [np.zeros(0, np.uint64)]
    for turn, following in zip(document.turns, (*document.turns[1:], None), strict=True):
        if turn.role == "user":
            asked = hashed(turn.content)
            found.append(of_length(asked, WORDS))
            if following is not None:
                found.append(whole(np.concatenate((asked, hashed(following.content)))))
    return np.concatenate(found)


def hashed(text: str) -> np.ndarray:
    """A number (n,) uint64 for each word."""
    return np.array([zlib.crc32(word.encode()) for word in WORD.findall(text.lower())], dtype=np.uint64)


def of_length(words: np.ndarray, length: int) -> np.ndarray:
    """A hash for every `length` words in a row: (n,) -> (max(0, n - length + 1),)."""
    count = max(0, len(words) - length + 1)
    total = np.zeros(count, dtype=np.uint64)
    for offset in range(length):
        total = total * FACTOR + words[offset : offset + count] + np.uint64(1)
    return total


def whole(words: np.ndarray) -> np.ndarray:
    """One hash for all of them; none for none."""
    return of_length(words, len(words)) if len(words) else words
