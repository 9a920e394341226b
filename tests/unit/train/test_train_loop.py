"""The training loop on a tiny model: it learns, and a break changes nothing."""

import io
import json
from pathlib import Path

import pytest
import tiny_training as tiny
import torch

from cluster.errors import VillageError
from train.loop import LoopConfig, learning_rate

GOLDEN = Path(__file__).parent / "golden_losses.json"


def losses(loop):
    return [point.loss for point in loop.progress.history]


def test_the_loss_falls():
    loop = tiny.loop()
    loop.run()
    assert losses(loop)[-1] < losses(loop)[0] / 2


def test_the_loss_curve_is_the_recorded_one():
    loop = tiny.loop(config={"precision": "fp32"})
    loop.run()
    assert losses(loop) == pytest.approx(json.loads(GOLDEN.read_text()), rel=2e-2)


def test_a_resumed_run_repeats_the_unbroken_curve_and_no_step():
    unbroken = tiny.loop()
    unbroken.run()

    class Killed(Exception):
        pass

    saved = {}

    def save(step, state):
        file = io.BytesIO()
        torch.save(state, file)
        saved[step] = file

    def die_at_17(progress):
        if progress.step == 17:
            raise Killed

    with pytest.raises(Killed):
        tiny.loop(save=save, report=die_at_17, config={"checkpoint_steps": 5}).run()
    resumed = tiny.loop()
    saved[max(saved)].seek(0)
    resumed.restore(torch.load(saved[max(saved)], weights_only=True))
    assert resumed.progress.step == 15
    steps = []
    resumed.report = lambda progress: steps.append(progress.step)
    resumed.run()
    assert steps == list(range(16, 31))
    assert losses(resumed) == pytest.approx(losses(unbroken), rel=1e-4)


def test_held_out_text_is_measured_before_the_first_and_after_the_last_step():
    seen = []
    loop = tiny.loop(evaluate=lambda _: (seen.append(loop.progress.step) or 1.0, 0.5))
    loop.run()
    assert [held.step for held in loop.progress.held_out] == [0, 30] == seen


def test_a_report_may_end_the_run():
    class Cancelled(Exception):
        pass

    def report(progress):
        if progress.step == 4:
            raise Cancelled

    loop = tiny.loop(report=report)
    with pytest.raises(Cancelled):
        loop.run()
    assert loop.progress.step == 4


def test_a_loss_that_is_not_a_number_ends_the_run():
    loop = tiny.loop()
    with torch.no_grad():
        next(loop.model.parameters()).fill_(float("nan"))
    with pytest.raises(VillageError, match="loss"):
        loop.run()


@pytest.mark.parametrize(("step", "share"), [(0, 0.1), (9, 1.0), (10, 1.0), (55, 0.55), (99, 0.1)])
def test_the_learning_rate_warms_up_and_decays_along_a_cosine(step, share):
    config = LoopConfig(max_steps=100, learning_rate=1.0, warmup_steps=10, final_learning_rate_ratio=0.1)
    assert learning_rate(step, config) == pytest.approx(share, abs=1e-3)


def test_remaining_time_follows_from_the_measured_rate():
    loop = tiny.loop()
    assert loop.progress.remaining_seconds is None
    loop.progress.step, loop.progress.seconds = 10, 5.0
    assert loop.progress.remaining_seconds == pytest.approx(10.0)
