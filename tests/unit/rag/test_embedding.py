"""MiniLM as we run it is MiniLM, whatever stands beside a text in its batch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rag.embedding import MiniLM, batches

TEXTS = [
    "The cat sat on the mat.",
    "A cat was sitting on a rug.",
    "Quarterly revenue fell by three percent.",
    "",
    "a " * 400,
]


def test_vectors_have_unit_length_and_follow_meaning(minilm):
    vectors = minilm(TEXTS)
    assert vectors.shape == (5, 384) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.6 > 0.2 > vectors[0] @ vectors[2]


def test_no_text_gives_no_vector(minilm):
    assert minilm([]).shape == (0, 384)


def test_the_batch_does_not_change_a_vector(minilm):
    together, alone = minilm(TEXTS), np.vstack([minilm([text]) for text in TEXTS])
    assert (together * alone).sum(axis=1) == pytest.approx(1, abs=5e-4)


def test_bfloat16_stays_near_float32(minilm):
    exact = MiniLM(dtype=torch.float32)(TEXTS)
    assert (exact * minilm(TEXTS)).sum(axis=1).min() > 0.999


def test_the_exact_forward_pass_is_that_of_transformers():
    """The six layers written out here against the library's own."""
    transformers = pytest.importorskip("transformers")
    from rag.embedding import minilm_folder

    model = transformers.AutoModel.from_pretrained(minilm_folder(), dtype=torch.float32)
    tokens = transformers.AutoTokenizer.from_pretrained(minilm_folder())(TEXTS[:1], return_tensors="pt")
    with torch.inference_mode():
        mean = model(**tokens).last_hidden_state.mean(1)
    expected = torch.nn.functional.normalize(mean, dim=1).numpy()
    assert np.allclose(MiniLM(dtype=torch.float32)(TEXTS[:1]), expected, atol=1e-5)


@given(st.lists(st.integers(1, 256), max_size=200), st.integers(256, 4096))
def test_batches_hold_every_row_once_within_the_budget(lengths, budget):
    seen = []
    for padded, rows in batches(lengths, budget):
        assert max(lengths[row] for row in rows) <= padded
        assert padded * len(rows) <= budget or len(rows) == 1
        assert len(rows) & (len(rows) - 1) == 0
        seen += rows
    assert sorted(seen) == list(range(len(lengths)))
