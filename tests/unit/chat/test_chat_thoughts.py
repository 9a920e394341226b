"""Whatever way a reply's ids come in pieces, a reader gets the same words, and nothing of a thought."""

from itertools import pairwise
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from serve_apps.chat.engine import Finish
from serve_apps.chat.thoughts import Listener, Marks
from serve_apps.dialects.openai.chunks import usage
from train.model.thoughts import without_thoughts
from train.model.tokenizer import THINK, THOUGHT

MARKS = Marks(think=100, thought=101)
ids_of_replies = st.lists(st.sampled_from([100, 101, *range(97, 100), *range(102, 105)]), max_size=30)


def heard(
    ids: list[int], cuts: list[int], stop: tuple[str, ...] = (), inside: bool = True
) -> tuple[str, list[int], Listener]:
    """Text and ids of a reply that comes in the pieces between `cuts`; one that is over hears nothing more."""
    listener, text, spoken = Listener(MARKS, chr, stop, inside), "", []
    edges = [0, *sorted(cut for cut in cuts if cut <= len(ids)), len(ids)]
    for start, end in pairwise(edges):
        piece = listener.hear(ids[start:end], last=end == len(ids))
        text, spoken = text + piece.text, spoken + [ids[start:end][index] for index in piece.indexes]
        if piece.ended:
            break
    return text, spoken, listener


@given(ids_of_replies, st.lists(st.integers(0, 30), max_size=6), st.booleans())
def test_words_do_not_depend_on_the_pieces(ids: list[int], cuts: list[int], inside: bool):
    text, spoken, listener = heard(ids, cuts, inside=inside)
    assert spoken == without_thoughts(ids, MARKS.think, MARKS.thought, inside)
    assert text == "".join(map(chr, spoken))
    assert listener.tokens == len(ids) == len(spoken) + listener.thought_tokens


@given(ids_of_replies, st.lists(st.integers(0, 30), max_size=6), st.lists(st.text("abchfg", min_size=1, max_size=3)))
def test_a_stop_string_counts_in_words_alone(ids: list[int], cuts: list[int], stop: list[str]):
    words = "".join(map(chr, without_thoughts(ids, MARKS.think, MARKS.thought, inside=True)))
    ends = [words.find(each) + len(each) for each in stop if each in words]
    # The first to be complete ends the reply, as in vLLM; the text goes up to where the earliest of those begins.
    there = words[: min(ends)] if ends else words
    begins = [at for each in stop if (at := there.find(each)) >= 0]
    text, _, listener = heard(ids, cuts, tuple(stop))
    assert text == (there[: min(begins)] if ends else words)
    if ends:
        assert listener.tokens == next(
            n for n in range(1, len(ids) + 1) if len(without_thoughts(ids[:n], 100, 101, True)) == min(ends)
        )


def test_a_beginning_of_a_stop_string_waits():
    listener = Listener(MARKS, chr, ("bcd",), inside=False)
    assert listener.hear([97, 98]).text == "a"
    assert listener.hear([99]).text == ""
    assert listener.hear([97]).text == "bca"  # it was none after all
    assert listener.hear([98], last=True).text == "b"


def test_a_thought_that_never_ends_says_nothing():
    text, spoken, listener = heard([97, 98, 99], [1])
    assert (text, spoken, listener.thought_tokens) == ("", [], 3)


def test_usage_tells_of_thoughts_where_there_were_any():
    assert "completion_tokens_details" not in usage(Finish("stop", 5, 7))
    assert usage(Finish("stop", 5, 7, thought_tokens=4))["completion_tokens_details"] == {"reasoning_tokens": 4}


def test_only_a_folder_that_says_so_thinks():
    from serve_apps.chat.thoughts import marks_of

    def convert(names: list[str]) -> list[int]:
        return [{THINK: 7, THOUGHT: 8}[name] for name in names]

    silent = SimpleNamespace(init_kwargs={}, convert_tokens_to_ids=convert)
    assert marks_of(silent) is None
    assert marks_of(object()) is None
    assert marks_of(SimpleNamespace(init_kwargs={"thinks": True}, convert_tokens_to_ids=convert)) == Marks(7, 8)
