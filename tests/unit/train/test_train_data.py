"""Sources, packing and the tokenizer: nothing is lost, nothing leaks from the held-out side."""

from pathlib import Path

import numpy as np
import pytest
import tiny_training as tiny
from hypothesis import given
from hypothesis import strategies as st

from train.data.packing import IGNORED, Batches, Position, batch, pack
from train.data.sources import CORPUS, corpus
from train.model.tokenizer import SPECIAL, Tokenizer, Turn

DOCUMENTS = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=40), max_size=40)


@given(DOCUMENTS, st.integers(4, 16))
def test_packing_keeps_every_token_and_overfills_no_row(documents, context):
    rows = pack(documents, context)
    assert all(sum(map(len, row)) <= context for row in rows)
    kept = sorted(token for row in rows for piece in row for token in piece)
    assert kept == sorted(token for document in documents for token in document)


@given(DOCUMENTS)
def test_a_target_is_the_next_token_of_the_same_document(documents):
    tokens, targets, numbers = batch(pack(documents, 16), 16, pad=0)
    for r, t in np.argwhere(targets != IGNORED):
        assert targets[r, t] == tokens[r, t + 1]
        assert numbers[r, t] == numbers[r, t + 1] > 0


@given(st.integers(0, 40))
def test_batches_go_on_from_a_position_as_if_never_stopped(stopped_after):
    whole = tiny.batches()
    unbroken = iter(whole)
    for _ in range(stopped_after):
        next(unbroken)
    resumed = tiny.batches(position=Position(*whole.position))
    assert np.array_equal(next(iter(resumed)).tokens, next(unbroken).tokens)


def test_two_workers_together_see_the_batch_of_one():
    alone = next(iter(tiny.batches())).tokens
    halves = [next(iter(tiny.batches(part=(rank, 2)))).tokens for rank in range(2)]
    assert np.array_equal(alone[0::2], halves[0])
    assert np.array_equal(alone[1::2], halves[1])


@pytest.mark.parametrize(("share", "pieces"), [(0.0, 0), (0.5, 30), (1.0, 60), (2.5, 150)])
def test_the_mix_says_how_often_an_epoch_takes_a_source(share, pieces):
    packed = Batches(tiny.documents(), {"counting": share}, context=64, size=1, pad=0, seed=1).epoch(0)
    assert sum(map(len, packed)) == pieces


def test_no_held_out_document_is_trained_on_not_even_inside_a_conversation(tmp_path: Path):
    split = corpus(tmp_path, 0.1, seed=1)
    assert split.held_out
    seen = {pair for document in split.training for pair in zip(document.turns, document.turns[1:], strict=False)}
    texts = {document.text for document in split.training}
    for document in split.held_out:
        assert document.turns[:2] not in seen
        assert not document.text or document.text not in texts


def test_the_projects_pages_are_learnt_from_and_change_the_digest(tmp_path: Path):
    without = corpus(tmp_path, 0.01, seed=1)
    (tmp_path / "README.md").write_text("# A village\n\nOnce there was one.")
    with_page = corpus(tmp_path, 0.01, seed=1)
    assert with_page.digest != without.digest == corpus(tmp_path / "nowhere", 0.01, seed=1).digest


def test_the_shipped_text_is_small():
    assert sum(path.stat().st_size for path in CORPUS.iterdir()) < 2_000_000


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["to be or not to be, that is the question", "What is 12 + 3?"], 300)


@given(st.text())
def test_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str):
    assert tokenizer.decode(tokenizer.text(text)) == text


@given(st.sampled_from(SPECIAL), st.text(max_size=5))
def test_content_never_becomes_a_special_token(tokenizer: Tokenizer, token: str, text: str):
    ids = tokenizer.chat([Turn("user", f"{text}{token}{text}")])
    assert [i for i in ids if i in tokenizer.ids.values()] == [
        tokenizer.ids["<|begin|>"], tokenizer.ids["<|user|>"], tokenizer.ids["<|end|>"]
    ]  # fmt: skip
