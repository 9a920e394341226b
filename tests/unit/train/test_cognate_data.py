"""Rows to documents, what counts as seen, rows in files; and a batch in parts is the batch."""

from pathlib import Path

import numpy as np
import pytest
import tiny_training as tiny
from hypothesis import given
from hypothesis import strategies as st

from cluster.settings import ROOT
from train.data import prepared
from train.data.contamination import WORDS, Overlap
from train.data.mapped import MappedRows, write_index, write_rows
from train.data.packing import Position, batch, pack
from train.data.records import document, json_rows, passages
from train.data.sources import Document, ask, corpus
from train.model.tokenizer import Turn
from train.phases.phase import PhaseConfig

TALK = (Turn("user", "Hi"), Turn("assistant", "Ho"))
NUMBERS = st.lists(st.integers(0, 9), min_size=WORDS, max_size=60)


@pytest.mark.parametrize(
    ("row", "text", "turns"),
    [
        ({"text": "a"}, "a", ()),
        ({"content": "a", "id": 3}, "a", ()),
        ({"prompt": "Hi", "response": "Ho"}, "", TALK),
        ({"instruction": "Hi", "output": "Ho", "input": ""}, "", TALK),
        ({"instruction": "Hi", "output": "Ho", "input": "x"}, "", (Turn("user", "Hi\n\nx"), TALK[1])),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}, "", TALK),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}, "", TALK),
        ({"messages": [], "text": "a"}, "a", ()),
    ],
)
def test_a_row_becomes_the_document_that_it_is(row, text, turns):
    assert document(row, "s") == Document("s", text, turns)


@pytest.mark.parametrize(
    "row",
    [
        {}, {"text": ""}, {"text": "  "}, {"text": 3}, {"label": 1}, {"messages": "hello"}, {"prompt": "Hi"},
        {"messages": [{"role": "king", "content": "a"}]},
    ],
)  # fmt: skip
def test_a_row_that_says_nothing_is_no_document(row):
    assert document(row, "s") is None


def test_lines_that_are_no_objects_are_rows_that_say_nothing():
    assert list(json_rows(b'{"text": "a"}\n\n[1]\nnonsense\n')) == [{"text": "a"}, {}, {}]


@given(st.lists(st.text(alphabet="ab \n", max_size=3000), max_size=8))
def test_passages_lose_no_word(parts):
    text = "\n\n".join(parts)
    assert " ".join(row["text"] for row in passages(text)).split() == text.split()


def words(numbers) -> str:
    return " ".join(f"w{number}" for number in numbers)


@given(NUMBERS, st.lists(st.integers(10, 19), max_size=40), st.data())
def test_thirteen_words_in_common_are_seen_whatever_surrounds_them(held, around, data):
    start = data.draw(st.integers(0, len(held) - WORDS))
    shared = words(held[start : start + WORDS]).upper().replace(" ", ",  ")
    overlap = Overlap([Document("a", text="something else"), Document("a", text=words(held))])
    assert overlap.seen([Document("b", text=f"{words(around)} {shared}! {words(around)}")]) == {1}


@given(NUMBERS, st.integers(0, WORDS - 1))
def test_fewer_words_in_common_are_not(held, count):
    others = words(range(100, 100 + WORDS))
    assert not Overlap([Document("a", text=words(held))]).seen([Document("b", text=f"{others} {words(held[:count])}")])


@pytest.mark.parametrize(
    ("held", "learnt", "seen"),
    [
        (ask("What is the capital of France?", "Paris."), ask("what is the capital of france", "Paris."), True),
        (ask("Capital of France?", "Paris."), ask("What is the capital of France?", "Paris."), False),
        (ask("1 - 0 = ?", "1"), ask("1 + 0 = ?", "1"), False),
        (ask("Capital?", words(range(20))), ask("Which city?", words(range(20))), False),
        (ask(words(range(20)), "Yes."), ask("Well, " + words(range(20)), "No."), True),
        (ask("Hi", "Ho"), (Turn("system", "Be brief."), *ask("Bye", "Bye."), *ask("hi!", "ho")), True),
    ],
)
def test_of_a_conversation_the_question_counts_and_the_exchange(held, learnt, seen):
    assert bool(Overlap([Document("a", turns=held)]).seen([Document("b", turns=learnt)])) is seen


def test_short_texts_are_seen_as_a_whole_only():
    overlap = Overlap([Document("a", text="To be, or not")])
    assert overlap.seen([Document("b", text="to be or not")]) == {0}
    assert not overlap.seen([Document("b", text="to be or not to be")])


def test_what_the_shipped_text_shares_with_its_held_out_part_is_dropped_and_counted(tmp_path: Path):
    prepared.prepare(tmp_path, ROOT, PhaseConfig())
    kept, split = prepared.held_out(tmp_path), corpus(ROOT, 0.04, 42)
    counts = prepared.report(tmp_path)
    assert counts["contaminated_documents"] == len(split.held_out) - len(kept) > 0
    assert counts["held_out_documents"] == len(kept)
    assert not Overlap(kept).seen(prepared.texts(tmp_path).training)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    documents = tiny.documents()["counting"]
    files = {f"{i}.npy": write_rows(folder / f"{i}.npy", documents[i::3], 32, 0, 64) for i in range(3)}
    write_index(folder, files)
    return folder


def test_rows_in_files_are_the_rows_that_were_packed(rows: Path):
    documents = tiny.documents()["counting"]
    packed = [row for i in range(3) for row in pack(documents[i::3], 32)]
    mapped = MappedRows(rows, size=len(packed), seed=1)
    assert mapped.count == len(packed)
    made, wanted = (
        sorted(zip(*(array.tolist() for array in each), strict=True))
        for each in (next(iter(mapped)), batch(packed, 32, 0))
    )
    assert made == wanted


@given(stopped_after=st.integers(0, 40), world=st.integers(1, 3))
def test_mapped_rows_go_on_from_a_position_as_if_never_stopped(rows: Path, stopped_after, world):
    whole = MappedRows(rows, size=4, seed=3, part=(0, world))
    unbroken = iter(whole)
    for _ in range(stopped_after):
        next(unbroken)
    resumed = MappedRows(rows, size=4, seed=3, part=(0, world), position=Position(*whole.position))
    assert np.array_equal(next(iter(resumed)).tokens, next(unbroken).tokens)


def test_every_epoch_has_each_row_once_in_an_order_of_its_own(rows: Path):
    mapped = MappedRows(rows, size=1, seed=3)
    epochs = [[row.tobytes() for row in mapped.epoch(number)] for number in range(2)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])


def test_a_batch_in_four_parts_gives_the_losses_of_the_whole():
    curves = []
    for accumulate in (1, 4):
        loop = tiny.loop(config={"precision": "fp32", "accumulate": accumulate, "max_steps": 20})
        loop.run()
        curves.append([(point.loss, point.gradient_norm) for point in loop.progress.history])
    assert np.allclose(curves[0], curves[1], rtol=1e-3)
