"""The phase: rounds follow the model's own success, a break changes nothing, and the gate tells a gain from chance."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_forge import TINY, forge
from tiny_training import SHAPE

from train.bitnet.linear import BitLinear
from train.curriculum.answering import answers
from train.curriculum.controller import Band
from train.curriculum.dreaming import distinct, likelihood
from train.curriculum.rounds import Kept, Round, readable, task_ids, until
from train.curriculum.sandbox import Sandbox
from train.curriculum.tasks import task
from train.curriculum.teaching import over_rounds
from train.data.packing import IGNORED, batch
from train.evaluate.quality import Quality
from train.model.learner import fresh, load
from train.model.llama import Llama
from train.model.tokenizer import Tokenizer
from train.phases.training import Training, TrainingConfig

SMALL = {
    "max_steps": 12, "round_steps": 4, "asked": 2, "window": 2, "exam_tasks": 1, "dreams_drawn": 4, "dream_tokens": 8,
    "dream_nats": 10.0, "dream_distinct": 0.1, "families": ["length", "capitals", "program"], "beginning": 2,
    "context_length": 64, "batch_size": 2, "held_out_tokens": 1024, "checkpoint_steps": 3, "checkpoint_seconds": 1000.0,
}  # fmt: skip


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    home = tmp_path_factory.mktemp("base")
    forge(home, [("cognate", TINY | {"max_steps": 20})])
    return {"base_models": [str(home / "runs" / "task_tiny" / "0-cognate" / "model")]}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, base):
    home, notes = tmp_path_factory.mktemp("unbroken"), []
    outcomes = forge(home, [("training", SMALL | base)], note=lambda message, **told: notes.append((message, told)))
    return home / "runs" / "task_tiny" / "0-training", outcomes[0], notes


def test_it_asks_moves_teaches_and_measures(unbroken):
    folder, outcome, notes = unbroken
    metrics = outcome.metrics
    assert metrics["rounds"] == 3 == len(Kept(folder / "rounds").all())
    assert {"success", "success_before", "success_program", "success_program_before", "success_level_1"} <= set(metrics)
    assert metrics["exam_tasks"] == metrics["exam_tasks_before"] == 30
    assert metrics["held_out_loss"] == pytest.approx(outcome.after.loss, rel=0.01)
    told = [fields for message, fields in notes if message == "round"]
    assert [fields["number"] for fields in told] == [0, 1, 2]
    assert set(told[0]["right"]) == {"length", "capitals"}  # the third waits
    assert metrics["dreams_kept"] > 0


# At step 5 the last checkpoint is of step 3, before the second round that is kept already.
@pytest.mark.parametrize("where", ["step 5", "round 1"])
def test_a_break_changes_nothing(base, unbroken, tmp_path, where):
    broken, phases = [], [("training", SMALL | base)]

    def report(progress):
        if f"step {progress.step}" == where and not broken:
            broken.append(where)
            raise Killed

    def note(message, **fields):
        if f"{message} {fields.get('number')}" == where and not broken:
            broken.append(where)
            raise Killed

    with pytest.raises(Killed):
        forge(tmp_path, phases, report=report, note=note)
    outcome = forge(tmp_path, phases, report=report, note=note)[0]
    folder, expected, _ = unbroken
    ours = tmp_path / "runs" / "task_tiny" / "0-training"
    for number in range(3):
        assert Kept(ours / "rounds").read(number) == Kept(folder / "rounds").read(number)
    assert outcome.digest == expected.digest
    curves = [json.loads((each / "curve.json").read_text()) for each in (ours, folder)]
    assert curves[0] == curves[1]


def test_a_gain_passes_beyond_chance_and_where_nothing_is_forgotten():
    phase = Training(TrainingConfig(standard_errors=2.0, loss_tolerance=0.05, conversation_tolerance=0.2))
    text = Quality(loss=3.0, accuracy=0.4, bits_per_byte=1.5, tokens=1000)
    worse = text.model_copy(update={"loss": 3.1})
    gain = {
        "success_before": 0.1, "success": 0.2, "success_standard_error": 0.02, "conversation_loss_before": 1.0,
        "conversation_loss": 1.1,
    }  # fmt: skip
    assert phase.gate(text, text, gain).outcome == "pass"
    assert phase.gate(text, text, gain | {"success": 0.13}).outcome == "keep"
    assert phase.gate(text, worse, gain).outcome == "keep"
    assert phase.gate(text, text, gain | {"conversation_loss": 1.3}).outcome == "keep"
    assert "10.0% -> 20.0%" in phase.gate(text, text, gain).reason


def learner():
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["What is 3 + 4? abc"] * 3, 300)
    return fresh(replace(SHAPE, vocab_size=tokenizer.vocab_size, context=64), tokenizer)


@pytest.mark.parametrize("thinking", [False, True])
def test_only_the_answer_is_learnt_to_say(thinking):
    made = learner()
    made.tokenizer.thinks = thinking
    said = "<|think|>3+4=7<|thought|>7" if thinking else "7"
    read = readable(batch([[task_ids(made, "What is 3 + 4?", said, True)]], 64, made.pad))
    whole = batch([[np.array(task_ids(made, "What is 3 + 4?", said, False))]], 64, made.pad)
    assert (read.tokens == whole.tokens).all()
    learnt = read.targets[read.targets != IGNORED]
    assert made.tokenizer.decode(learnt.tolist(), marks=True) == said.removeprefix("<|think|>") + "<|end|>"


def test_a_thinking_model_is_asked_for_its_thought_and_checked_without():
    made, chance = learner(), random.Random(0)
    made.tokenizer.thinks = True
    some = [task("plus", 1, chance)]
    with Sandbox() as sandbox:
        answered = answers(made, some, sandbox, thought_tokens=8)
    assert answered[0].reply.startswith("<|think|>") and not answered[0].right


def test_dreams_are_held_against_the_model_that_began():
    model = Llama(SHAPE).eval()
    short, long = [1, 2, 3], [1, 2, 3, 4, 5, 6]
    together = likelihood(model, [short, long], 0)
    assert together[0] == pytest.approx(likelihood(model, [short], 0)[0], rel=1e-4)  # padding counts nothing
    assert likelihood(model, [], 0) == []
    assert distinct([1, 1, 2, 2]) == 0.5


def test_documents_come_again_only_when_all_came():
    documents = [np.full(5, n) for n in range(10)]
    chosen = until(documents, 75, random.Random(0))
    assert len(chosen) == 15
    assert {int(each[0]) for each in chosen[:10]} == set(range(10))
    assert len(until(documents, 75, random.Random(0), once=True)) == 10


def test_the_band_counts_families_that_reached_it():
    here = {"difficulty": 1.0, "step": 0.0, "right": 0, "asked": 0}
    rounds = [
        Round(0, {"a": (8, 10), "b": (0, 10)}, {"a": here | {"reached": True}, "b": here | {"reached": False}}, []),
        Round(1, {"a": (6, 10), "b": (7, 10)}, {"a": here | {"reached": True}, "b": here | {"reached": True}}, []),
    ]
    found = over_rounds(rounds, Band())
    assert found["rounds_in_band"] == 0.5
    assert found["family_rounds_in_band"] == pytest.approx(2 / 3)
    assert found["families_reached"] == 2


def test_a_ternary_model_is_asked_and_taught_and_stays_ternary(tmp_path, base):
    bitnet = {"max_steps": 4, "context_length": 64, "batch_size": 2, "held_out_tokens": 1024, "tolerance": 10.0}
    forge(tmp_path, [("bitnet", bitnet | base), ("training", SMALL | {"max_steps": 4})])
    taught = load(tmp_path / "runs" / "task_tiny" / "1-training" / "model").model
    assert any(isinstance(module, BitLinear) for module in taught.modules())


def test_a_model_that_thinks_is_taught_with_thoughts_and_still_thinks(tmp_path, base):
    thinker = load(Path(base["base_models"][0]))
    thinker.tokenizer.thinks = True
    (tmp_path / "thinker").mkdir()
    thinker.save(tmp_path / "thinker")
    small = SMALL | {"max_steps": 4, "families": ["plus", "length"], "base_models": [str(tmp_path / "thinker")]}
    forge(tmp_path, [("training", small)])
    made = tmp_path / "runs" / "task_tiny" / "0-training"
    assert load(made / "model").tokenizer.thinks
    first = Kept(made / "rounds").read(0)
    assert first is not None
    for question, answer in first.taught:
        assert answer.startswith("<|think|>") and ("+" in answer.partition("<|thought|>")[0]) == ("+" in question)
