"""Chunks are slices of the text, none too long, and together they hold all of it."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.chunking import Chunk, Strategy, chunk, sentences

TEXTS = st.text(st.sampled_from("aB1 .!?\n\t#-é。e\u00a0") | st.characters(codec="utf-8"), min_size=0, max_size=400)


def turning(texts):
    """Vectors that depend on nothing but the text."""
    rng = np.random.default_rng(len(texts))
    return rng.normal(size=(len(texts), 8)).astype(np.float32)


@given(TEXTS, st.sampled_from(Strategy), st.integers(20, 120))
def test_chunks_are_bounded_slices_that_hold_every_letter(text, strategy, bound):
    chunks = chunk(text, strategy, turning, bound)
    held = set()
    for one in chunks:
        assert 0 <= one.start < one.end <= len(text)
        assert one.end - one.start <= bound
        assert not text[one.start].isspace() and not text[one.end - 1].isspace()
        held |= set(range(one.start, one.end))
    assert all(i in held or letter.isspace() for i, letter in enumerate(text))
    assert [c.start for c in chunks] == sorted({c.start for c in chunks})


@given(TEXTS, st.sampled_from([Strategy.SENTENCE, Strategy.HEADING, Strategy.SEMANTIC]))
def test_only_fixed_windows_overlap(text, strategy):
    chunks = chunk(text, strategy, turning, 60)
    assert all(a.end <= b.start for a, b in pairwise(chunks))


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("One ends. Two begins! Three? Four", ["One ends.", "Two begins!", "Three?", "Four"]),
        ("Dr. Smith met J. Doe at 3.5 km, e.g. here.", ["Dr. Smith met J. Doe at 3.5 km, e.g. here."]),
        ("# Title\nBody stands below", ["# Title", "Body stands below"]),
        ("First:\n- one\n- two", ["First:", "- one", "- two"]),
        ("stops stand alone . as here . done", ["stops stand alone .", "as here .", "done"]),
        ("東京です。大阪です。", ["東京です。", "大阪です。"]),
        ('He said "No." Then he left.', ['He said "No."', "Then he left."]),
        (" \n ", []),
    ],
)
def test_sentences_end_where_a_reader_would_end_them(text, cut):
    assert [text[a:b] for a, b in sentences(text)] == cut


def test_heading_chunks_never_cross_a_heading_and_carry_it():
    text = "Before.\n\n# One\nIn one.\n\n## Two ##\nIn two. Still two.\n"
    assert chunk(text, Strategy.HEADING) == [
        Chunk(0, 7, ""), Chunk(9, 22, "One"), Chunk(24, 52, "Two"),
    ]  # fmt: skip


def test_semantic_chunks_break_where_the_topic_turns():
    fish, bolts = (
        "Cod swim in cold water and eat small herring there. ",
        "Bolts hold a steel flange against the gasket. ",
    )
    text = fish * 6 + bolts * 6

    def topics(texts):
        return np.array([[1.0, 0.0] if "Cod" in one else [0.0, 1.0] for one in texts], dtype=np.float32)

    pieces = [text[c.start : c.end] for c in chunk(text, Strategy.SEMANTIC, topics)]
    assert not any("Cod" in piece and "Bolts" in piece for piece in pieces)


def test_semantic_chunks_need_an_embedder():
    with pytest.raises(ValueError, match="embeddings"):
        chunk("One. Two.", Strategy.SEMANTIC)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "unit", ["J. ", "a. B. ", "# a    ", "#\n", " ", "\n \n", "! ", "x", "- 1\n", '."', "1) ", "é。"]
)
@pytest.mark.parametrize("strategy", Strategy)
def test_no_text_takes_more_than_linear_time(unit, strategy):
    """Regression: patterns and windows that looked again from the start took hours for a text of repeated pieces."""
    text = ("# a" + " " * 1000 + "b\n") + unit * (300_000 // len(unit)) + "z"

    def embed(texts):
        return np.ones((len(texts), 2), dtype=np.float32)

    assert chunk(text, strategy, embed)[-1].end == len(text)
