"""The phase on three tiny siblings: what it leaves, what it says, and that a break changes nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_forge import TINY, forge, run_of

from cluster.errors import Invalid
from train.causes import Cause, Failed
from train.data.prepared import texts
from train.data.sources import Document
from train.evaluate.quality import Quality
from train.evomerge.fitness import evaluate, questions_of, set_apart
from train.evomerge.merging import merged
from train.evomerge.work import task_of
from train.manifest import folder_digest
from train.model.learner import load
from train.model.tokenizer import Turn
from train.phases import catalogue
from train.phases.evomerge import Evomerge, EvomergeConfig
from train.phases.phase import Outcome, Work
from train.stage import standing

FAMILY = TINY | {"max_steps": 24, "siblings": 3, "siblings_from": 0.5, "batch_size": 1, "held_out_tokens": 256}
SMALL = {
    "population": 4, "generations": 2, "fitness_tokens": 256, "fitness_questions": 2, "answer_tokens": 4,
    "context_length": 64, "operators": ["linear", "ties", "dare_ties", "passthrough"],
}  # fmt: skip
PHASES = [("cognate", FAMILY), ("evomerge", SMALL)]


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Path:
    """A home in which cognate is over."""
    home = tmp_path_factory.mktemp("family")
    forge(home, PHASES[:1])
    return home


@pytest.fixture(scope="module")
def whole(family: Path, tmp_path_factory) -> Path:
    """A home in which evomerge is over as well, without a break."""
    home = tmp_path_factory.mktemp("whole") / "home"
    shutil.copytree(family, home)
    forge(home, PHASES)
    return home


def stage(home: Path) -> Path:
    return home / "runs/task_tiny/1-evomerge"


def archive(home: Path) -> Any:
    """`evolution.json` without what a clock measured."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(inner) for key, inner in value.items() if not key.endswith("seconds")}
        return [timeless(inner) for inner in value] if isinstance(value, list) else value

    return timeless(json.loads((stage(home) / "evolution.json").read_text()))


def work_of(home: Path, phases: Any = PHASES) -> Work:
    run = run_of(phases)
    here = standing(home, run, len(phases) - 1, ())
    return Work(
        run=run, number=1, home=home, root=home, rank=0, world=1, device=torch.device("cpu"), wrap=lambda each: each,
        report=lambda _: None, note=lambda *_, **__: None, base=here.model, siblings=here.siblings,
    )  # fmt: skip


def test_three_siblings_become_one(whole: Path):
    outcome = json.loads((stage(whole) / "outcome.json").read_text())
    metrics, kept = outcome["metrics"], archive(whole)
    assert metrics["parents"] == 3
    assert metrics["merges"] == 3 + 1 + 2 * 4 == sum(len(generation) for generation in kept["merges"])
    assert metrics["held_out_loss"] == outcome["after"]["loss"]
    assert metrics["fitness"] <= min(metrics["fitness_average"], metrics["fitness_best_parent"])
    passed = metrics["held_out_loss"] <= metrics["held_out_loss_best_parent"]
    assert outcome["verdict"]["outcome"] == ("pass" if passed else "keep")
    assert f"{metrics['held_out_loss_average']:.4f} of the plain average" in outcome["verdict"]["reason"]
    assert load(stage(whole) / "model").phases == []


def test_what_is_saved_is_what_was_chosen(whole: Path):
    """The folder measures on the fitness text what the archive says of the choice."""
    work = work_of(whole)
    task = task_of(EvomergeConfig.model_validate(SMALL), work)
    chosen = archive(whole)["chosen"]
    again = evaluate(task, {"number": 0, "recipe": chosen["recipe"]})
    for name, value in chosen["measured"].items():
        assert again[name] == value
    alone = evaluate(task, {"number": 0, "recipe": {"operator": "linear", "weights": [[0, 1, 0]] * 2}})
    assert alone["loss"] == archive(whole)["merges"][0][1]["measured"]["loss"]


@pytest.mark.parametrize("broken_at", [2, 6, 12])
def test_a_broken_search_ends_as_an_unbroken_one(family: Path, whole: Path, tmp_path: Path, broken_at: int):
    home = tmp_path / "home"
    shutil.copytree(family, home)

    def breaking(progress: Any) -> None:
        if progress.step == broken_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        forge(home, PHASES, report=breaking)
    notes: list[tuple[str, dict[str, Any]]] = []
    forge(home, PHASES, note=lambda message, **fields: notes.append((message, fields)))
    assert ("resumed", {"merges": broken_at}) in notes
    assert archive(home) == archive(whole)
    assert folder_digest(stage(home) / "model") == folder_digest(stage(whole) / "model")


def test_a_break_after_the_model_is_there_is_made_good(whole: Path, tmp_path: Path):
    home = tmp_path / "home"
    shutil.copytree(whole, home)
    (stage(home) / "outcome.json").unlink()
    forge(home, PHASES)
    one, other = (json.loads((stage(each) / "outcome.json").read_text()) for each in (home, whole))
    assert one["digest"] == other["digest"] and one["metrics"]["held_out_loss"] == other["metrics"]["held_out_loss"]


def test_one_parent_is_not_enough(family: Path):
    work = work_of(family)
    work.siblings = ()
    with pytest.raises(Failed, match="at least two parents") as error:
        Evomerge(EvomergeConfig.model_validate({})).run(work)
    assert error.value.details["cause"] == Cause.BASE_MODEL
    work.siblings = (work.base,) if work.base else ()  # the same model again
    with pytest.raises(Failed, match="at least two parents"):
        Evomerge(EvomergeConfig.model_validate({})).run(work)


def test_parents_of_unlike_shapes_are_refused(family: Path, tmp_path: Path):
    forge(
        tmp_path,
        [("cognate", TINY | {"max_steps": 4, "target_architecture": "llama-3m", "parameter_budget": 4_000_000})],
    )
    work = work_of(family)
    work.siblings = (tmp_path / "runs/task_tiny/0-cognate/model",)
    with pytest.raises(Failed, match="another shape"):
        Evomerge(EvomergeConfig.model_validate({})).run(work)


def test_several_base_models_are_merged_by_a_run_of_this_phase_alone(family: Path, tmp_path: Path):
    made = family / "runs/task_tiny/0-cognate"
    bases = [str(made / "model"), str(made / "siblings/0")]
    ended = forge(tmp_path, [("evomerge", SMALL | {"base_models": bases, "method": "cmaes", "generations": 1})])
    assert ended[0].metrics["parents"] == 2
    assert ended[0].metrics["held_out_loss"] == ended[0].after.loss


def test_task_vectors_start_from_the_trunk_where_there_is_one(family: Path, tmp_path: Path):
    home = tmp_path / "home"
    shutil.copytree(family, home)
    folder = home / "runs/task_tiny/0-cognate"
    assert task_of(EvomergeConfig.model_validate({}), work_of(home)).ancestor == folder / "siblings/trunk"
    assert len(task_of(EvomergeConfig.model_validate({}), work_of(home)).parents) == 3
    assert task_of(EvomergeConfig.model_validate({"ancestor": "mean"}), work_of(home)).ancestor is None
    shutil.rmtree(folder / "siblings/trunk")
    assert task_of(EvomergeConfig.model_validate({}), work_of(home)).ancestor is None


def test_the_fitness_text_is_none_of_the_judges(family: Path):
    corpus = texts(family / "runs/task_tiny/data")
    apart = set_apart(corpus.training, 0.06)
    judges = {document.fingerprint for document in corpus.held_out}
    assert apart and not judges & {document.fingerprint for document in apart}
    assert 0.03 < len(apart) / len(corpus.training) < 0.09
    assert not {"conversation", "replay"} & {document.source for document in apart}
    assert {document.source for document in apart} >= {"sums", "capitals", "shakespeare"}


def test_at_most_so_many_questions_are_asked():
    documents = [Document("sums", turns=(Turn("user", str(i)), Turn("assistant", "1"))) for i in range(10)]
    documents += [Document("shakespeare", text="Enter Romeo.")]
    assert [len(questions_of(documents, most)) for most in (0, 1, 3, 9, 10, 99)] == [0, 1, 3, 5, 10, 10]


def test_the_gate_asks_for_less_loss_than_before_and_for_no_parent_that_is_better_in_all():
    def verdict(after: float, outdone_by: float = 0.0) -> Outcome:
        metrics = {
            "held_out_loss_best_parent": 2.0, "held_out_loss_average": 2.5, "answers": 0.5, "answers_best_parent": 0.4,
            "answers_average": 0.1, "answers_before": 0.5, "outdone_by": outdone_by,
        }  # fmt: skip
        qualities = [Quality(loss=loss, accuracy=0.5, bits_per_byte=1.0, tokens=100) for loss in (2.1, after)]
        return Evomerge(EvomergeConfig.model_validate({})).gate(*qualities, metrics).outcome

    assert [verdict(loss) for loss in (1.9, 2.1, 2.11)] == [Outcome.PASS, Outcome.PASS, Outcome.KEEP]
    assert [verdict(2.0, by) for by in (0.01, 0.02)] == [Outcome.PASS, Outcome.KEEP]


def test_a_configuration_that_cannot_run_is_refused():
    for wrong in ({"operators": []}, {"objectives": ["error"]}, {"operators": ["average"]}, {"population": 1}):
        with pytest.raises(Invalid):
            catalogue.phase("evomerge", wrong)


def test_what_the_parents_replay_is_replayed_by_the_merge(family: Path, tmp_path: Path):
    folder, folders = family / "runs/task_tiny/0-cognate", []
    for number, text in enumerate(("both", "both", "one")):
        learner = load(folder / "siblings" / str(number % 2))
        learner.replay = [Document("replay", text=text), Document("replay", text="both")]
        folders.append(tmp_path / str(number))
        folders[-1].mkdir()
        learner.save(folders[-1])
    assert sorted(document.text for document in merged(folders, "linear").replay) == ["both", "one"]
