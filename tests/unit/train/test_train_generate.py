"""Many prompts at once are answered as each would be alone, also when most of them have ended."""

import random
from pathlib import Path

import pytest
import torch

from train.model.generate import generate
from train.model.learner import Learner, fresh, hub
from train.model.shape import Shape
from train.model.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["What is the capital of France? Paris."], 300)
SHAPE = Shape(width=64, layers=2, heads=2, feed_forward=96, vocab_size=TOKENIZER.vocab_size, context=64)


@pytest.fixture(scope="module")
def ours() -> Learner:
    torch.manual_seed(4)
    learner = fresh(SHAPE, TOKENIZER)
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter.mul_(6)  # so that replies differ
    return learner


@pytest.fixture(scope="module")
def theirs(ours: Learner, tmp_path_factory) -> Learner:
    folder: Path = tmp_path_factory.mktemp("model")
    ours.save(folder)
    return hub(str(folder))


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_together_as_alone(whose: str, request: pytest.FixtureRequest):
    learner: Learner = request.getfixturevalue(whose)
    chance = random.Random(2)
    prompts = [[chance.randrange(20, TOKENIZER.vocab_size) for _ in range(chance.randint(1, 12))] for _ in range(12)]
    whole = generate(learner, prompts, 40, stop=[])
    stop = sorted({reply[number % 9] for number, reply in enumerate(whole)})[::2]  # some end at once, some never
    together = generate(learner, prompts, 40, stop=stop)
    assert together == [generate(learner, [prompt], 40, stop=stop)[0] for prompt in prompts]
    assert len({len(reply) for reply in together}) > 3
    for reply, endless in zip(together, whole, strict=True):
        assert reply == endless[: len(reply)] and not set(reply) & set(stop)


def test_a_reply_ends_where_the_context_does(ours: Learner):
    (reply,) = generate(ours, [[30] * 200], 8, stop=[])
    assert len(reply) == 8
    assert generate(ours, [[30]], 500, stop=[])[0][:8] != []


def test_drawn_replies_are_the_generators(ours: Learner):
    drawn = [
        generate(ours, [[30], [31, 32]], 20, stop=[40], temperature=1.0, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
