"""Tool baking from end to end, broken off anywhere, and from bases that think or are ternary."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_forge import TINY, forge

from train.baking import lowrank
from train.baking.lessons import Book, conversation, plain, spoken, under
from train.baking.measure import agreement, tool_rates
from train.baking.objective import baked, divergence, supervised
from train.baking.talk import Talk, converse
from train.baking.tasks import tasks
from train.baking.teaching import answers, copies, drills, shown
from train.bitnet.linear import is_ternary, ternary
from train.data.packing import Batches
from train.evaluate.quality import Quality
from train.model.generate import generate
from train.model.learner import Learner, fresh, load
from train.model.llama import Llama
from train.model.shape import Shape
from train.model.tokenizer import CALL, THINK, THOUGHT, Tokenizer, Turn
from train.phases import catalogue
from train.phases.phase import Outcome
from train.tools import spellings

CPU = torch.device("cpu")
SMALL = {
    "copying_steps": 2, "teacher_steps": 3, "teacher_tasks": 12, "max_steps": 3, "trajectories": 6, "batch_size": 1,
    "measured_tasks": 6, "max_tokens": 16, "replay": 4, "checkpoint_steps": 1, "context_length": 256,
    "held_out_tokens": 512, "held_out": 0.006, "mix": {"shakespeare": 0, "project": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("base")
    forge(home, [("cognate", TINY | {"context_length": 512, "max_steps": 4, "vocab_size": 700})])
    return home / "runs" / "task_tiny" / "0-cognate" / "model"


@pytest.fixture(scope="module")
def learner() -> Learner:
    torch.manual_seed(5)
    tokenizer = Tokenizer.train(["What is the capital of France? Paris.", *spellings() * 20], 600)
    shape = Shape(width=64, layers=2, heads=2, feed_forward=96, vocab_size=tokenizer.vocab_size, context=256)
    return fresh(shape, tokenizer)


def dialogue(learner: Learner) -> tuple[Turn, ...]:
    return shown(learner, tasks(1, 1, held_out=False)[0])


def test_teacher_and_student_read_the_same_words_at_the_same_places(learner: Learner):
    turns = dialogue(learner)
    (lesson,) = conversation(learner, turns, teacher="Be kind.")
    ids, at = spoken(learner, turns)
    assert lesson.ids.tolist() == ids and lesson.at.tolist() == at
    assert lesson.taught.tolist() == learner.tokenizer.chat(under("Be kind.", turns))
    assert lesson.taught[lesson.taught_at + 1].tolist() == lesson.ids[lesson.at + 1].tolist()
    said = learner.tokenizer.decode(lesson.ids[lesson.at + 1].tolist(), marks=True)
    assert said == "".join(f"{turn.content}<|end|>" for turn in turns if turn.role == "assistant")


def test_a_thinking_model_hands_no_thought_on(learner: Learner):
    thinking = Learner(
        learner.model, Tokenizer(learner.tokenizer.bpe, thinks=True), learner.context, learner.pad, learner.write
    )
    first, last = conversation(thinking, dialogue(thinking), teacher="Be kind.")
    for lesson in (first, last):
        ids = lesson.ids.tolist()
        assert ids.count(learner.tokenizer.ids[THINK]) == 1
        assert ids[lesson.at[0]] == learner.tokenizer.ids[THINK]  # the prompt ends with it
        assert ids[lesson.at[0] + 1] == learner.tokenizer.ids[THOUGHT]
    assert CALL in learner.tokenizer.decode(first.ids[first.at + 1].tolist(), marks=True)
    assert CALL not in learner.tokenizer.decode(last.ids[last.at + 1].tolist(), marks=True)


def batches(learner: Learner, book: Book) -> Batches:
    return Batches(book.documents, {}, context=256, size=2, pad=learner.pad, seed=1)


def test_the_loss_is_the_divergence_of_two_models_asked_one_by_one(learner: Learner):
    """Packed, padded, side by side and kept as hidden states: the same as by hand."""
    from train.baking.objective import Student

    model = Llama(learner.shape)  # type: ignore[arg-type]
    lowrank.add(model, 4, 8)
    for name, parameter in model.named_parameters():
        if name.endswith(".b"):
            torch.nn.init.normal_(parameter, std=0.5)
    some = [shown(learner, task) for task in tasks(3, 2, held_out=False)]
    lessons = [each for turns in some for each in conversation(learner, turns, teacher="Be kind, and brief.")]
    book = Book({"tools": lessons})
    batch = next(iter(batches(learner, book)))
    loss = baked(book, "fp32", CPU)(Student(model), batch, 0)
    expected, count = 0.0, 0
    with torch.no_grad():
        for _, _, lesson in book.found(batch):
            with lowrank.without(model):
                teacher = model(torch.from_numpy(lesson.taught).long()[None])[0, lesson.taught_at]
            student = model(torch.from_numpy(lesson.ids).long()[None])[0, lesson.at]
            p, q = teacher.log_softmax(-1), student.log_softmax(-1)
            expected += ((p - q) * p.exp()).sum().item()
            count += len(lesson.at)
    assert loss.item() == pytest.approx(expected / count, rel=2e-2)
    loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert grads and all(name.endswith((".a", ".b")) for name in grads)
    kl, same = agreement(model, lessons, "fp32", CPU)
    assert kl == pytest.approx(expected / count, rel=2e-2) and 0 <= same <= 1


def test_weights_count(learner: Learner):
    from train.baking.objective import Student
    from train.data.sources import Document

    (one,) = plain(learner, Document("text", text="What is the capital of France?"), 256, 0.25)
    (other,) = drills(learner, 1, 3)
    means = []
    for lessons in ([one], [other], [one, other]):
        book = Book({"text": lessons})
        with torch.no_grad():
            batch = next(iter(Batches(book.documents, {}, context=256, size=1, pad=learner.pad, seed=1)))
            means.append(supervised(book, "fp32", CPU)(Student(learner.model), batch, 0).item())
    a, b = 0.25 * len(one.at), float(len(other.at))
    assert means[2] == pytest.approx((a * means[0] + b * means[1]) / (a + b), rel=1e-4)


@given(st.integers(0, 1000))
def test_drills_copies_and_answers_count_what_is_copied_alone(seed: int):
    learner: Any = SimpleNamespace(tokenizer=TOKENIZER)
    (drill,) = drills(learner, 1, seed)
    again = drill.ids[drill.at + 1].tolist()[:-1]
    assert drill.ids.tolist()[1 : 1 + len(again)] == again
    (task,) = tasks(1, seed, held_out=False)
    for lesson, source in (copies(learner, [task], seed)[0], ""), (answers(learner, [task])[0], task.result):
        *counted, end = lesson.ids[lesson.at + 1].tolist()
        asked = TOKENIZER.decode(lesson.ids.tolist()[1 : -1 - len(counted)])
        said = TOKENIZER.decode(counted).strip()
        assert end == lesson.ids[-1]
        if source:
            assert source in asked and said == task.answer
        elif task.call.name != "calendar":  # -3 of "3 days ago", 0 of "today"
            assert all(str(value) in asked for value in json.loads(said).values())


TOKENIZER = Tokenizer.train(spellings() * 20, 600)


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3), st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_a_divergence_is_not_negative_and_zero_of_a_thing_itself(p: list[float], q: list[float]):
    one, other = torch.tensor([p]), torch.tensor([q])
    assert divergence(one, other).item() >= -1e-5
    assert divergence(one, one).item() == pytest.approx(0, abs=1e-6)


def test_calls_are_really_executed_and_rated(learner: Learner, monkeypatch):
    """A scripted model that calls right, calls wrong, or answers at once."""
    asked = tasks(6, 0, held_out=True)
    by_question = {task.question: task for task in asked}

    def scripted(learner, prompts, max_tokens, **_):
        found = []
        for prompt in prompts:
            text = learner.tokenizer.decode(prompt, marks=True)
            question = next(question for question in by_question if f"<|user|>{question}<|end|>" in text)
            task, number = by_question[question], asked.index(by_question[question])
            if "<|tool|>" in text:
                answer = text.rpartition("<|tool|>")[2].partition("<|end|>")[0]
                found.append("I forgot." if number == 1 else f"It is {answer}.")
            else:
                wrong = task.call.text.replace('": "', '": "9').replace('": ', '": 9', 1) if number == 2 else ""
                found.append("I do not know." if number == 0 else wrong or task.call.text)
        return [learner.tokenizer.marked(reply) for reply in found]

    monkeypatch.setattr("train.baking.talk.generate", scripted)
    rates = tool_rates(learner, asked)
    assert rates.call == pytest.approx(4 / 6) and rates.arguments == pytest.approx(4 / 6)
    assert rates.success == pytest.approx(3 / 6) and rates.error == pytest.approx(math.sqrt(0.25 / 6))
    talk = Talk([asked[3].question], asked[3].now)
    converse(learner, [talk])
    assert [turn.role for turn in talk.turns] == ["user", "assistant", "tool", "assistant"]
    assert talk.turns[2].content == asked[3].result and talk.last == f"It is {asked[3].result}."


def quality(loss: float) -> Quality:
    return Quality(loss=loss, accuracy=0.2, bits_per_byte=loss / 2, tokens=100)


@pytest.mark.parametrize(
    ("success", "false", "loss", "outcome"),
    [(0.5, 0.0, 4.0, Outcome.PASS), (0.05, 0.0, 4.0, Outcome.KEEP), (0.5, 0.2, 4.0, Outcome.KEEP),
     (0.5, 0.0, 4.2, Outcome.KEEP)],
)  # fmt: skip
def test_the_gate(success: float, false: float, loss: float, outcome: Outcome):
    metrics = {
        "tool_success_before": 0.0, "tool_success_after": success, "tool_success_error_before": 0.0,
        "tool_success_error_after": 0.04, "false_call_rate_after": false,
    }  # fmt: skip
    verdict = catalogue.phase("tool_baking", {}).gate(quality(4.0), quality(loss), metrics)
    assert verdict.outcome is outcome and f"{success:.1%}" in verdict.reason


class Stop(Exception):
    """The worker dies here."""


def test_a_broken_off_baking_ends_as_an_unbroken_one(base: Path, tmp_path: Path):
    wanted = [("tool_baking", {"base_models": [str(base)], **SMALL})]
    steps: list[int] = []
    (whole,) = forge(tmp_path / "whole", wanted, report=lambda progress: steps.append(progress.step))
    assert steps == list(range(1, 9))  # drills, teacher and baking are one phase's steps

    for at in (1, 4, 7):  # in each of the three

        def report(progress: Any, at: int = at) -> None:
            if progress.step == at:
                raise Stop

        with pytest.raises(Stop):
            forge(tmp_path / "broken", wanted, report=report)
    (again,) = forge(tmp_path / "broken", wanted)
    assert again.digest == whole.digest
    timed = {"seconds", "training_seconds", "tokens_per_second", "peak_memory_bytes"}
    assert {k: v for k, v in again.metrics.items() if k not in timed} == {
        k: v for k, v in whole.metrics.items() if k not in timed
    }
    made = load(tmp_path / "whole" / "runs" / "task_tiny" / "0-tool_baking" / "model")
    assert [document.source for document in made.replay] == ["replay"] * 4
    assert all(CALL in document.turns[1].content for document in made.replay)
    assert whole.verdict.outcome is Outcome.KEEP and "tool_success_after" in whole.metrics
    curve = json.loads((tmp_path / "whole" / "runs" / "task_tiny" / "0-tool_baking" / "curve.json").read_text())
    assert len(curve["steps"]) == SMALL["max_steps"]


def test_bases_that_think_and_are_ternary(base: Path, tmp_path: Path):
    given = load(base)
    given.tokenizer = Tokenizer(given.tokenizer.bpe, thinks=True)
    ternary(given.model)
    (tmp_path / "base").mkdir()
    given.save(tmp_path / "base")
    wanted = {"base_models": [str(tmp_path / "base")], **SMALL, "pursuits": 2, "max_steps": 1}
    forge(tmp_path / "home", [("tool_baking", wanted)])
    made = load(tmp_path / "home" / "runs" / "task_tiny" / "0-tool_baking" / "model")
    assert is_ternary(made.model)
    prompt = made.tokenizer.prompt([Turn("user", "Compute 34 + 58.")])
    assert prompt[-1] == made.tokenizer.ids[THINK]
    assert made.replay[0].turns[1].content.startswith(THINK + THOUGHT + CALL)
    assert len(generate(made, [prompt], 4, stop=[])[0]) == 4
    assert not any(isinstance(module, lowrank.LowRank) for module in made.model.modules())
