"""Entities and how they hang together: a light knowledge graph. Pure.

An entity is a name (a run of capitalised words, an acronym, a CamelCase word) or a pair of words that a text repeats.
Two entities are related where one sentence names both; the weight is the number of such sentences.
"""

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import log, sqrt

from rag.chunking import sentences
from rag.words import STOP, WORD, words

MAX_ENTITIES = 12  # per chunk: more would make every pair of a long chunk a relation
MAX_NODES = 4  # of a path: beyond three steps co-occurrence says nothing
MAX_PATHS = 5

NAME = re.compile(r"[A-Z][\w&/-]*(?:\.\d+)?(?:[ \t](?:(?:of|the|for|de)[ \t])?[A-Z\d][\w&/-]*)*")
STRONG = re.compile(r"^[A-Z\d&/-]{2,}s?$|[a-z][A-Z]|[A-Z][\w-]*\d")  # acronyms, CamelCase, names with a number
STARTS = re.compile(r"(?:^|[.!?:;#*\n\"“(-])\s*$")
Edge = tuple[str, str]


@dataclass(frozen=True)
class Path:
    """Entities from one to another; `strength` in (0, 1) is the product of the associations of its steps."""

    nodes: tuple[str, ...]
    strength: float


def entities(chunks: Sequence[str]) -> list[tuple[str, ...]]:
    """The entities of each chunk of one text, at most `MAX_ENTITIES`, those that the text names most often first."""
    found = [Counter({**_phrases(text), **_names(text)}) for text in chunks]
    total: Counter[str] = Counter()
    for counted in found:
        total.update(counted)
    return [tuple(_first(counted, total)) for counted in found]


def _first(counted: Counter[str], total: Counter[str]) -> list[str]:
    # A phrase in lower case is a term only if the text comes back to it; a name is one at once.
    known = [entity for entity in counted if not entity.islower() or total[entity] > 1]
    return sorted(known, key=lambda entity: (-total[entity], entity))[:MAX_ENTITIES]


def _names(text: str) -> Counter[str]:
    names: Counter[str] = Counter()
    weak: Counter[str] = Counter()
    for match in NAME.finditer(text):
        parts = match[0].split()
        led = parts[0].lower() in STOP
        parts = parts[led:]
        name = " ".join(parts).strip("-&/.")
        if len(name) < 2 or name.lower() in STOP or name.isdigit():
            continue
        # Any word is capitalised at the start of a sentence: alone it is a name only if it is one elsewhere too.
        first = len(parts) == 1 and not led and not STRONG.search(name)
        opens = first and STARTS.search(text, 0, match.start())
        (weak if opens else names)[name] += 1
    return names + Counter({name: count for name, count in weak.items() if name in names})


def _phrases(text: str) -> Counter[str]:
    """Pairs of lower-case words with neither stop word nor punctuation between (as in RAKE, Rose et al. 2010)."""
    pairs_of_words: Counter[str] = Counter()
    before, place = "", 0
    for match in WORD.finditer(text):
        word = match[0] if match[0].islower() and len(match[0]) >= 3 and match[0] not in STOP else ""
        if before and word and not text[place : match.start()].strip():
            pairs_of_words[f"{before} {word}"] += 1
        before, place = word, match.end()
    return pairs_of_words


def together(text: str, entities: Sequence[str]) -> list[tuple[str, ...]]:
    """For each sentence of a chunk, those of its entities that the sentence names."""
    spans = [text[start:end] for start, end in sentences(text)]
    named = [tuple(entity for entity in entities if _names_it(span, entity)) for span in spans]
    return [some for some in named if some]


def _names_it(sentence: str, entity: str) -> bool:
    # A pattern for each entity would cost more to compile than a search is worth.
    at = sentence.find(entity)
    while at >= 0:
        before, after = sentence[at - 1 : at], sentence[at + len(entity) : at + len(entity) + 1]
        if not (before.isalnum() or after.isalnum()):
            return True
        at = sentence.find(entity, at + 1)
    return False


def relations(named: Iterable[Sequence[str]]) -> Counter[Edge]:
    """Unordered pairs of entities and the number of sentences that name both."""
    return Counter(edge for entities in named for edge in combinations(sorted(set(entities)), 2))


def paths(query: str, named: Sequence[Sequence[str]]) -> list[Path]:
    """The strongest paths that leave an entity of the query, over the entities that each retrieved sentence names.

    Two entities are associated by weight / (1 + sqrt(frequency * frequency)): a cosine, shrunk while sentences are few.
    A path that leads to another entity of the query comes first; then the stronger one.
    """
    frequency = Counter(entity for entities in named for entity in set(entities))
    steps: dict[str, dict[str, float]] = defaultdict(dict)
    for (a, b), weight in relations(named).items():
        steps[a][b] = steps[b][a] = weight / (1 + sqrt(frequency[a] * frequency[b]))
    asked = set(words(query))
    starts = sorted(entity for entity in frequency if asked & set(words(entity)))
    found: dict[frozenset[str], Path] = {}
    for start in starts:
        for path in _strongest(start, steps):
            ends = frozenset((path.nodes[0], path.nodes[-1]))
            if ends not in found or path.strength > found[ends].strength:
                found[ends] = path
    wanted = set(starts)
    ranked = sorted(found.values(), key=lambda p: (p.nodes[-1] not in wanted, -p.strength, len(p.nodes), p.nodes))
    return _distinct(ranked)[:MAX_PATHS]


def _distinct(ranked: Sequence[Path]) -> list[Path]:
    """Without the paths whose every step a better one has shown."""
    shown: set[frozenset[str]] = set()
    kept = []
    for path in ranked:
        steps = {frozenset(step) for step in pairwise(path.nodes)}
        if not steps <= shown:
            kept.append(path)
            shown |= steps
    return kept


def _strongest(start: str, steps: Mapping[str, Mapping[str, float]]) -> list[Path]:
    """Dijkstra over -log(association), at most `MAX_NODES` nodes a path."""
    best: dict[str, Path] = {}
    queue: list[tuple[float, int, tuple[str, ...], float]] = [(0.0, 1, (start,), 1.0)]
    while queue:
        cost, length, nodes, strength = heapq.heappop(queue)
        if nodes[-1] in best:
            continue
        best[nodes[-1]] = Path(nodes, strength)
        if length < MAX_NODES:
            for following, association in steps.get(nodes[-1], {}).items():
                if following not in best:
                    further = (cost - log(association), length + 1, (*nodes, following), strength * association)
                    heapq.heappush(queue, further)
    return [path for path in best.values() if len(path.nodes) > 1]
