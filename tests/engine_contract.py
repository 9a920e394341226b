"""What every chat engine promises: the same tests for the real one and for the one that other tests use."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from itertools import pairwise

import pytest

from cluster.errors import Invalid
from serve_apps.chat.engine import ChatEngine, Delta, Finish, ModelRef, Sampling, Turn

GREEDY = Sampling(temperature=0.0, max_tokens=12, ignore_eos=True)


async def reply(
    engine: ChatEngine, model: ModelRef, messages: Sequence[Turn], sampling: Sampling
) -> tuple[str, Finish]:
    """The whole text and how it ended."""
    text, steps = "", [step async for step in engine.generate(model, messages, sampling)]
    assert all(isinstance(step, Delta) for step in steps[:-1]), "a Finish is the last value"
    text = "".join(step.text for step in steps[:-1] if isinstance(step, Delta))
    assert isinstance(steps[-1], Finish)
    return text, steps[-1]


async def eventually(condition: Callable[[], bool], within: float = 5) -> None:
    """Return once `condition` holds; what it looks at has no event to wait for."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def turns(count: int, size: int = 8) -> list[Turn]:
    """A conversation that ends with the user."""
    return [Turn("user" if (count - i) % 2 else "assistant", str(i).rjust(size, "x")) for i in range(count)]


class Contract:
    """Fixtures `engine` and `model` come from whoever inherits this."""

    async def test_the_last_value_counts_every_token(self, engine: ChatEngine, model: ModelRef):
        steps = [step async for step in engine.generate(model, turns(1), GREEDY)]
        finish = steps[-1]
        assert isinstance(finish, Finish)
        assert finish.completion_tokens == sum(len(step.token_ids) for step in steps if isinstance(step, Delta)) == 12
        assert finish.prompt_tokens > 0
        assert finish.reason == "length"

    async def test_greedy_is_repeatable_streamed_or_not(self, engine: ChatEngine, model: ModelRef):
        whole = Sampling(temperature=0.0, max_tokens=12, ignore_eos=True, stream=False)
        texts = [(await reply(engine, model, turns(1), how))[0] for how in (GREEDY, GREEDY, whole)]
        assert texts[0] == texts[1] == texts[2] != ""

    async def test_probability_is_measured_when_asked(self, engine: ChatEngine, model: ModelRef):
        _, unmeasured = await reply(engine, model, turns(1), GREEDY)
        _, measured = await reply(engine, model, turns(1), Sampling(0.0, 12, ignore_eos=True, measure=True))
        assert unmeasured.mean_probability is None
        assert measured.mean_probability is not None
        assert 0 < measured.mean_probability <= 1

    async def test_logprobs_come_with_their_tokens(self, engine: ChatEngine, model: ModelRef):
        asked = Sampling(0.0, 6, ignore_eos=True, logprobs=2)
        deltas = [step async for step in engine.generate(model, turns(1), asked) if isinstance(step, Delta)]
        given = [entry for delta in deltas for entry in delta.logprobs or ()]
        assert len(given) == 6
        assert all(entry.logprob <= 0 and len(entry.top) == 2 for entry in given)
        # Greedy takes the most likely token, and alternatives are ordered.
        assert all(entry.top[0][1] == entry.logprob for entry in given)
        assert all(a[1] >= b[1] for entry in given for a, b in pairwise(entry.top))

    async def test_the_oldest_messages_make_room(self, engine: ChatEngine, model: ModelRef):
        long = [Turn("system", "be kind"), *turns(41, size=20)]
        _, finish = await reply(engine, model, long, Sampling(0.0, 4, ignore_eos=True))
        assert 0 < finish.dropped_turns < 41
        assert finish.prompt_tokens + 4 <= model.context_length

    async def test_max_tokens_come_down_to_what_fits(self, engine: ChatEngine, model: ModelRef):
        _, finish = await reply(engine, model, turns(1), Sampling(0.0, 100_000, ignore_eos=True))
        assert finish.prompt_tokens + finish.completion_tokens == model.context_length
        assert finish.max_tokens == finish.completion_tokens

    async def test_a_stop_string_ends_the_reply_before_it(self, engine: ChatEngine, model: ModelRef):
        whole, _ = await reply(engine, model, turns(1), GREEDY)
        stop = whole[4:6]
        text, finish = await reply(engine, model, turns(1), Sampling(0.0, 12, stop=(stop,), ignore_eos=True))
        assert text == whole[: whole.index(stop)]
        assert finish.reason == "stop"

    async def test_closing_the_stream_aborts_the_request(self, engine: ChatEngine, model: ModelRef):
        async with aclosing(engine.generate(model, turns(1), Sampling(0.0, None, ignore_eos=True))) as steps:
            await anext(steps)
            assert engine.loaded()[0].running == 1
        await eventually(lambda: engine.loaded()[0].running == 0, within=2)

    async def test_no_message_is_invalid(self, engine: ChatEngine, model: ModelRef):
        with pytest.raises(Invalid):
            await reply(engine, model, [], GREEDY)
