"""Text to chunks. Pure: where a rule needs meaning, the embeddings come in as a function.

A chunk is a slice of the text: `text[chunk.start:chunk.end]`. The chunks of a text, in order, hold every character of
it that is not white space at its edges; only `fixed` lets neighbours overlap.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MAX_CHARS = 1000  # about 220 tokens of English: MiniLM reads 256
OVERLAP_CHARS = 150  # of `fixed`, which may cut through a thought
BREAK_PERCENTILE = 20  # `semantic` breaks at the fifth of the gaps where neighbours are least alike
SHORT_CHARS = 80  # sentences that fit in here together are one to `semantic`: a word or two have no topic
MIN_SEMANTIC_CHARS = 200  # below this a topic is too short to be found by its vector

Embed = Callable[[Sequence[str]], NDArray[np.float32]]

# None of these patterns may look at a place twice for each place before it: a text has up to a million.
HEADING = re.compile(r"^#{1,6}[ \t]+(?P<title>\S[^\n]{0,200})", re.MULTILINE)
# A sentence ends at a stop followed by white space, at an ideographic stop, at a blank line, around a heading and
# before a list item. What follows a full stop must not be lower case, unless the stop stands alone ("word . word").
END = re.compile(
    r"(?P<stop>(?<!\s)\.[\"'”’)\]]*\s+(?=[^a-z\s])|(?<=\s)\.\s+|[!?][\"'”’)\]]*\s+|[。！？]\s*)"
    r"|\n[ \t]*\n\s*|\n(?=#{1,6}[ \t])|(?m:^#{1,6}[ \t][^\n]*\n)|(?<=\n)(?=[ \t]*(?:[-*+•]|\d+[.)])[ \t]+\S)"
)
ABBREVIATION = re.compile(r"(?:^|[\s(])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|vs|etc|e\.g|i\.e|cf|Fig|No|al|approx)$")
LONGEST_ABBREVIATION = 10


class Strategy(StrEnum):
    """How a text is cut."""

    SENTENCE = "sentence"  # whole sentences, as many as fit
    HEADING = "heading"  # never across a Markdown heading, and by sentences within
    SEMANTIC = "semantic"  # breaks where neighbouring sentences are least alike
    FIXED = "fixed"  # equal windows with an overlap


@dataclass(frozen=True)
class Chunk:
    """A slice of a text and the heading that it stands under ("" where there is none)."""

    start: int
    end: int
    heading: str = ""


Span = tuple[int, int]


def chunk(text: str, strategy: Strategy, embed: Embed | None = None, max_chars: int = MAX_CHARS) -> list[Chunk]:
    """The chunks of `text`, none longer than `max_chars`, none blank. `semantic` needs `embed`."""
    if strategy is Strategy.FIXED:
        spans = windows(text, max_chars, min(OVERLAP_CHARS, max_chars // 4))
    elif strategy is Strategy.HEADING:
        spans = [span for section in sections(text) for span in pack(sentences(text, *section, max_chars), max_chars)]
    elif strategy is Strategy.SEMANTIC:
        if embed is None:
            raise ValueError("semantic chunking needs embeddings")
        spans = by_meaning(text, sentences(text, 0, len(text), max_chars), embed, max_chars)
    else:
        spans = pack(sentences(text, 0, len(text), max_chars), max_chars)
    return list(_under_headings(text, spans))


def sentences(text: str, start: int = 0, end: int | None = None, max_chars: int = MAX_CHARS) -> list[Span]:
    """The sentences of `text[start:end]` without the space around them; one that is too long is cut at a space."""
    end = len(text) if end is None else end
    spans: list[Span] = []
    begun = start
    for match in END.finditer(text, start, end):
        last = text[max(begun, match.start() - LONGEST_ABBREVIATION) : match.start()]
        if match["stop"] and match["stop"][0] == "." and ABBREVIATION.search(last):
            continue
        spans += _cut(text, begun, match.end(), max_chars)
        begun = match.end()
    return spans + _cut(text, begun, end, max_chars)


def sections(text: str) -> list[Span]:
    """What lies between Markdown headings, each with its own heading line."""
    starts = [0, *(match.start() for match in HEADING.finditer(text)), len(text)]
    return [(a, b) for a, b in pairwise(starts) if text[a:b].strip()]


def pack(spans: Iterable[Span], max_chars: int) -> list[Span]:
    """Neighbouring spans joined as long as the whole fits."""
    packed: list[Span] = []
    for start, end in spans:
        if packed and end - packed[-1][0] <= max_chars:
            packed[-1] = (packed[-1][0], end)
        else:
            packed.append((start, end))
    return packed


def windows(text: str, max_chars: int, overlap: int) -> list[Span]:
    """Windows of `max_chars` that start `overlap` before the last one's end, cut at a space where there is one."""
    spans: list[Span] = []
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    while start < end:
        while text[start].isspace():
            start += 1
        # One letter more than fits, so that the cut knows whether it falls on a space.
        spans += _cut(text, start, min(end, start + max_chars + 1), max_chars)[:1]
        first, stop = spans[-1]
        if stop >= end:
            break
        # A window always moves on, however long a word is.
        wanted = max(stop - overlap, first + 1)
        space = text.find(" ", wanted, stop)
        start = wanted if space < 0 else space + 1
    return spans


def by_meaning(text: str, spans: Sequence[Span], embed: Embed, max_chars: int) -> list[Span]:
    """Sentences grouped into topics: a break where the cosine of neighbours is among the lowest (Kamradt 2023).

    Each sentence is compared with the next by windows of up to two, since one alone says little.
    """
    spans = pack(spans, min(SHORT_CHARS, max_chars))
    if len(spans) < 3:
        return pack(spans, max_chars)
    vectors = embed([text[a:b] for a, b in spans])  # (n, d)
    left = vectors[:-1] + np.vstack([np.zeros_like(vectors[:1]), vectors[:-2]])
    right = vectors[1:] + np.vstack([vectors[2:], np.zeros_like(vectors[:1])])
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    alike = (left * right).sum(axis=1) / np.maximum(norms, 1e-9)  # (n - 1,)
    # Windows overlap, so a turn pulls its neighbours down too: only the lowest of them is the turn.
    valley = (alike <= np.append(alike[1:], 1.0)) & (alike <= np.append(1.0, alike[:-1]))
    turns = valley & (alike <= np.percentile(alike, BREAK_PERCENTILE))
    grouped: list[Span] = [spans[0]]
    for (start, end), turn in zip(spans[1:], turns, strict=True):
        first = grouped[-1][0]
        if (turn and grouped[-1][1] - first >= MIN_SEMANTIC_CHARS) or end - first > max_chars:
            grouped.append((start, end))
        else:
            grouped[-1] = (first, end)
    return grouped


def _cut(text: str, start: int, end: int, max_chars: int) -> list[Span]:
    """`text[start:end]` without outer space, in pieces of at most `max_chars`, cut at a space where there is one."""
    pieces: list[Span] = []
    while True:
        while start < end and text[start].isspace():
            start += 1
        if start >= end:
            return pieces
        stop = min(end, start + max_chars)
        if stop < end and not text[stop].isspace():
            spaces = [i for i in range(stop - 1, start + max_chars // 2, -1) if text[i].isspace()][:1]
            stop = spaces[0] if spaces else stop
        following = stop
        while text[stop - 1].isspace():
            stop -= 1
        pieces.append((start, stop))
        start = following


def _under_headings(text: str, spans: Iterable[Span]) -> Iterable[Chunk]:
    headings = [(match.start(), match["title"].rstrip(" \t#")) for match in HEADING.finditer(text)]
    place = -1
    for start, end in spans:
        while place + 1 < len(headings) and headings[place + 1][0] <= start:
            place += 1
        yield Chunk(start, end, headings[place][1] if place >= 0 else "")
