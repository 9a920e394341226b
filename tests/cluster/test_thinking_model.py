"""A model that quietstar made, in the real vLLM engine: it thinks first, and nobody is shown what."""

import asyncio
import math
import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from serve_apps.chat.engine import Delta, Finish, ModelRef, Sampling, Turn
from train.model.learner import fresh
from train.model.shape import Shape
from train.model.thoughts import thinking
from train.model.tokenizer import Tokenizer
from train.model.tokenizer import Turn as Said

ASKED = [Turn("user", "What is 3 + 4?")]
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
          "additionalProperties": False}  # fmt: skip


def exported(folder: Path) -> None:
    """A model that has learnt one thoughtful answer by heart, as quietstar leaves its models."""
    torch.manual_seed(0)
    answer = Said("assistant", thinking("3+4=7", "3 + 4 = 7 \N{EM DASH} yes."))
    tokenizer = Tokenizer(Tokenizer.train([answer.content], 512).bpe, thinks=True)
    learner = fresh(Shape(width=64, layers=2, heads=2, feed_forward=128, vocab_size=512, context=128), tokenizer)
    ids = torch.tensor([tokenizer.chat([Said("user", ASKED[0].content), answer])])
    optimizer = torch.optim.AdamW(learner.model.parameters(), lr=5e-3)
    loss = torch.inf
    for _ in range(200):
        loss = F.cross_entropy(learner.model(ids)[0, :-1], ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01
    learner.save(folder)


@pytest.mark.timeout(300)
@pytest.mark.asyncio
async def test_thoughts_are_generated_counted_and_hidden(tmp_path: Path):
    from serve_apps.chat.vllm_model import VllmModel  # seconds of imports

    exported(tmp_path)
    model = ModelRef("model_thinker", "thinker", str(tmp_path), "sha256:thinker", 128)
    loaded = await asyncio.to_thread(VllmModel.start, model, 64, 1)

    async def reply(sampling: Sampling) -> tuple[list[Delta], Finish]:
        *deltas, finish = [step async for step in loaded.generate(ASKED, sampling)]
        assert isinstance(finish, Finish)
        return [step for step in deltas if isinstance(step, Delta)], finish

    try:
        marks, greedy = loaded.marks, Sampling(0.0, 48, measure=True, logprobs=1)
        assert marks is not None
        loaded.marks = None  # what vLLM gives when nobody listens: thoughts and all
        raw, _ = await reply(greedy)
        loaded.marks = marks
        ids = [each for step in raw for each in step.token_ids]
        end = ids.index(marks.thought) + 1
        spoken = ids[end:]
        assert end > 3 and spoken and marks.think not in spoken, "the tiny model thinks once, then speaks"
        text = loaded.tokenizer.decode(spoken, skip_special_tokens=True)

        deltas, finish = await reply(greedy)
        assert text_of(deltas) == text
        assert [each for step in deltas for each in step.token_ids] == spoken
        logprobs = [entry.logprob for step in raw for entry in step.logprobs or ()][end:]
        assert [entry.logprob for step in deltas for entry in step.logprobs or ()] == pytest.approx(logprobs, abs=1e-3)
        assert finish.mean_probability == pytest.approx(sum(map(math.exp, logprobs)) / len(spoken), abs=1e-3)
        began = time.monotonic()
        deltas, finish = await reply(Sampling(0.0, 48, stream=False))
        print(f"{end} of {len(ids)} tokens are thought; the reply took {time.monotonic() - began:.3f} s")
        assert text_of(deltas) == text
        assert (finish.completion_tokens, finish.thought_tokens) == (len(ids), end)

        deltas, finish = await reply(Sampling(0.0, 2))
        assert (deltas, finish.reason, finish.thought_tokens) == ([], "length", 2)
        stop = text[2:4]
        deltas, finish = await reply(Sampling(0.0, 48, stop=(stop,), stream=False))
        assert (text_of(deltas), finish.reason) == (text[: text.index(stop)], "stop")
        deltas, finish = await reply(Sampling(0.0, 48, json_schema=SCHEMA))
        assert (
            text_of(deltas).lstrip().startswith("{") and finish.thought_tokens == 0
        )  # what fits a schema is not thought
    finally:
        await asyncio.to_thread(loaded.stop)


def text_of(deltas: list[Delta]) -> str:
    return "".join(step.text for step in deltas)
