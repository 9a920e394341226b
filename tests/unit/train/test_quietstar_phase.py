"""The phase in this process: what it leaves, that it takes up where it was, and what its gate says."""

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import tiny_checkpoint
from tiny_forge import TINY, forge
from transformers import AutoTokenizer

from train.causes import Failed
from train.evaluate.quality import Quality
from train.model.generate import generate
from train.model.learner import load
from train.model.thoughts import spoken, thinking, thought_of, without_thoughts
from train.model.tokenizer import END, THINK, THOUGHT, Turn
from train.phases.phase import Outcome
from train.phases.quietstar import Quietstar, QuietstarConfig

TINY_QUIETSTAR = {
    "max_steps": 8, "reinforce_from": 0.5, "positions": 4, "thoughts": 2, "thought_tokens": 4, "ahead": 4,
    "context_length": 64, "thinking_context": 64, "batch_size": 2, "scratchpads": 60,
    "largest_operand": 12, "exam_questions": 10, "replayed": 6, "checkpoint_steps": 3,
    "mix": {}, "held_out_tokens": 1024, "tolerance": 0.05,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of ten steps."""
    home = tmp_path_factory.mktemp("base")
    forge(home, [("cognate", TINY | {"max_steps": 10})])
    return home / "runs" / "task_tiny" / "0-cognate" / "model"


def alone(home: Path, base: Path, **how: Any) -> tuple[dict[str, float], Path]:
    """Quietstar from the base model: its metrics and its folder."""
    (outcome,) = forge(home, [("quietstar", TINY_QUIETSTAR | {"base_models": [str(base)]})], **how)
    kept = {name: value for name, value in outcome.metrics.items() if "second" not in name and "memory" not in name}
    return kept, home / "runs" / "task_tiny" / "0-quietstar"


@pytest.fixture(scope="module")
def thought(tmp_path_factory: pytest.TempPathFactory, base: Path) -> tuple[dict[str, float], Path]:
    return alone(tmp_path_factory.mktemp("thought"), base)


def test_it_measures_before_and_after(thought: tuple[dict[str, float], Path]):
    metrics, folder = thought
    for name in (
        "arithmetic_all_before", "arithmetic_all", "arithmetic_all_without_thought", "arithmetic_sums", "mixing_weight",
        "thought_tokens", "future_loss_plain", "future_loss_mixed", "advantage", "held_out_loss_before",
    ):  # fmt: skip
        assert metrics[name] >= 0, name
    told = json.loads((folder / "thoughts.json").read_text())
    assert [row[0] for row in told["rows"]] == [5, 6, 7, 8]  # half of the steps, numbered as in the curve


def test_the_model_begins_every_reply_with_a_thought(thought: tuple[dict[str, float], Path]):
    learner = load(thought[1] / "model")
    ids = learner.tokenizer.ids
    prompt = learner.tokenizer.prompt((Turn("user", "What is 3 + 4?"),))
    assert prompt[-1] == ids[THINK]
    assert learner.model.cosine is not None and "head" not in dict(learner.model.named_children())
    hub: Any = AutoTokenizer.from_pretrained(thought[1] / "model")
    message = [{"role": "user", "content": "What is 3 + 4?"}]
    assert hub.apply_chat_template(message, add_generation_prompt=True, return_dict=False) == prompt
    assert hub.init_kwargs["thinks"] is True
    # Documents are as they are, with a thought or without.
    said = (Turn("user", "Hi"), Turn("assistant", "Hello."))
    assert ids[THINK] not in learner.tokenizer.chat(said)


def test_a_model_that_does_not_think_is_as_it_was(base: Path):
    settings = json.loads((base / "tokenizer_config.json").read_text())
    assert "thinks" not in settings and THINK not in settings["chat_template"]
    learner = load(base)
    assert THINK not in [k for k, v in learner.tokenizer.ids.items() if v == learner.tokenizer.prompt(())[-1]]
    assert spoken(learner, [9, 10]) == [9, 10]


def test_it_leaves_thoughts_to_be_replayed(thought: tuple[dict[str, float], Path]):
    replay = load(thought[1] / "model").replay
    assert len(replay) == 6
    for document in replay:
        content = document.turns[-1].content
        assert content.startswith(THINK) and THOUGHT in content and thought_of(content)[1]


def test_broken_off_and_taken_up_it_comes_to_the_same(
    thought: tuple[dict[str, float], Path], base: Path, tmp_path: Path
):
    class Gone(Exception): ...

    for last in (2, 6):  # among the scratchpads, and among the thoughts

        def report(progress: Any, last: int = last) -> None:
            if progress.step == last:
                raise Gone

        with pytest.raises(Gone):
            alone(tmp_path, base, report=report)
    metrics, folder = alone(tmp_path, base)
    assert metrics == pytest.approx(thought[0])
    assert (folder / "thoughts.json").read_bytes() == (thought[1] / "thoughts.json").read_bytes()
    assert (folder / "model" / "model.safetensors").read_bytes() == (
        thought[1] / "model" / "model.safetensors"
    ).read_bytes()


def test_reinforcing_alone_needs_no_scratchpads(base: Path, tmp_path: Path):
    config = TINY_QUIETSTAR | {"scratchpads": 0, "reinforce_from": 0.0, "max_steps": 2, "base_models": [str(base)]}
    (outcome,) = forge(tmp_path, [("quietstar", config)])
    assert outcome.verdict.outcome is Outcome.KEEP


def test_spoken_leaves_thoughts_out(thought: tuple[dict[str, float], Path]):
    learner = load(thought[1] / "model")
    ids = learner.tokenizer.ids
    think, end, word = ids[THINK], ids[THOUGHT], 300
    assert spoken(learner, [7, 8, end, word, think, 9, end, word + 1]) == [word, word + 1]
    assert spoken(learner, [7, 8]) == []
    assert without_thoughts([word, end, word], think, end) == [word, word]
    turn = learner.tokenizer.chat((Turn("user", "x"), Turn("assistant", thinking("a b", "c d"))))
    mark = turn.index(think)
    assert learner.tokenizer.decode(spoken(learner, turn[mark + 1 :])) == "c d"
    reply = generate(learner, [learner.tokenizer.prompt((Turn("user", "Hi"),))], 8, stop=[ids[END]])[0]
    assert think not in spoken(learner, reply)


@pytest.mark.parametrize(
    ("was", "at_once", "now", "loss", "wanted"),
    [
        (0.1, 0.2, 0.6, 4.0, Outcome.PASS), (0.1, 0.2, 0.6, 4.06, Outcome.KEEP), (0.1, 0.1, 0.13, 3.0, Outcome.KEEP),
        (0.5, 0.2, 0.4, 3.0, Outcome.KEEP), (0.1, 0.1, 0.16, 4.04, Outcome.PASS), (0.1, 0.6, 0.6, 4.0, Outcome.KEEP),
    ],
)  # fmt: skip
def test_the_gate_wants_more_right_answers_and_the_same_text(
    was: float, at_once: float, now: float, loss: float, wanted: Outcome
):
    phase = Quietstar(QuietstarConfig.model_validate({"tolerance": 0.05}))
    before = Quality(loss=4.0, accuracy=0.2, bits_per_byte=2.0, tokens=1000)
    metrics = {
        "arithmetic_asked": 400.0, "arithmetic_all_before": was, "arithmetic_all": now,
        "arithmetic_all_without_thought": at_once,
    }  # fmt: skip
    verdict = phase.gate(before, before.model_copy(update={"loss": loss}), metrics)
    assert verdict.outcome is wanted
    assert f"{was:.1%} -> {now:.1%}" in verdict.reason


def test_a_tokenizer_without_the_marks_is_refused(tmp_path: Path):
    foreign = tiny_checkpoint(tmp_path / "foreign")
    with pytest.raises(Failed, match="marks"):
        alone(tmp_path, foreign)
