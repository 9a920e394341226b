from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import Invalid
from serve_apps.chat.engine import Turn
from serve_apps.chat.history import fit


def encode(turns: Sequence[Turn]) -> list[int]:
    """One token a character, and one for each message."""
    return [0] * sum(len(turn.content) + 1 for turn in turns)


turn = st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), st.text(max_size=30))


@given(st.lists(turn, min_size=1, max_size=30), st.integers(8, 200), st.none() | st.integers(1, 300))
def test_a_prompt_and_its_answer_fit_the_context(turns, context, max_tokens):
    needed = [t for t in turns[:-1] if t.role == "system"] + turns[-1:]
    try:
        prompt = fit(turns, encode, context, max_tokens)
    except Invalid:
        assert len(encode(needed)) >= context
        return
    assert len(prompt.token_ids) + prompt.max_tokens <= context
    assert prompt.max_tokens >= 1
    assert prompt.max_tokens <= (max_tokens or context)
    assert 0 <= prompt.dropped <= len(turns) - len(needed)


@given(st.lists(turn, min_size=1, max_size=30), st.integers(40, 400))
def test_no_message_is_dropped_that_could_have_stayed(turns, context):
    try:
        prompt = fit(turns, encode, context, 1)
    except Invalid:
        return
    old = [i for i, t in enumerate(turns[:-1]) if t.role != "system"]
    if prompt.dropped:
        one_more = set(old[: prompt.dropped - 1])
        assert len(encode([t for i, t in enumerate(turns) if i not in one_more])) + 1 > context


def test_more_context_never_drops_more():
    turns = [Turn("user", "x" * 10) for _ in range(20)]
    dropped = [fit(turns, encode, context, 10).dropped for context in range(30, 300, 10)]
    assert all(a >= b for a, b in pairwise(dropped))


def test_the_answer_keeps_a_quarter_of_the_context_from_history():
    prompt = fit([Turn("user", "x" * 9) for _ in range(10)], encode, 80, None)
    assert prompt.max_tokens >= 20


def test_a_last_message_longer_than_the_context_is_invalid():
    with pytest.raises(Invalid) as error:
        fit([Turn("user", "x" * 100)], encode, 50, 10)
    assert error.value.details["context_length"] == 50
