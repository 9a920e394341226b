"""What evomerge does: a search over merges, the one that is chosen as a model folder, and what it is worth."""

import json
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.causes import Cause, Failed
from train.data.prepared import held_out
from train.evaluate.perplexity import quality
from train.evomerge.evolution import METHODS, Evolution, Settings, Trial, chosen
from train.evomerge.fitness import Task, answered, built, evaluate, questions_of, ready
from train.evomerge.genome import Space
from train.evomerge.merging import depth
from train.loop import Progress
from train.manifest import Checkpoints, folder_digest, write_durably
from train.model.checkpoint import publish
from train.model.learner import Learner, load
from train.phases.phase import Work

if TYPE_CHECKING:
    from train.phases.evomerge import EvomergeConfig

TRUNK = "trunk"  # beside cognate's siblings: what they have in common
EVOLUTION = "evolution.json"
JUDGES_QUESTIONS = 64


def evolve(config: "EvomergeConfig", work: Work) -> dict[str, float]:
    """Leaves the model in `work.output`, and in `evolution.json` every merge that was measured."""
    task = task_of(config, work)
    here = ready(task)
    space = Space(len(task.parents), depth(here.learner), min(config.groups, depth(here.learner)))
    objectives = tuple(name for name in config.objectives if name != "error" or here.questions)
    settings = Settings(
        population=config.population, generations=config.generations, operators=config.operators,
        objectives=objectives, weights=weighing(config), seed=config.seed, tournament=config.tournament,
        crossover=config.crossover, mutation=config.mutation, deviation=config.deviation,
        least_distance=config.least_distance,
    )  # fmt: skip
    search, seconds = searched(work, METHODS[config.method](space, settings), task)
    try:
        pick = chosen(search, weighted=bool(config.weights))
    except ValueError as error:
        raise Failed(f"no merge could be measured: {error}", Cause.NOT_FINITE) from error
    work.note("chosen", recipe=pick.recipe, **(pick.measured or {}))
    keep(work.folder / EVOLUTION, search, pick)
    publish(work.output, built(task, pick.recipe).save)
    return worth(work, task) | of_the_search(search, pick, seconds)


def weighing(config: "EvomergeConfig") -> dict[str, float]:
    """The objectives' weights where one number is wanted."""
    return {str(name): weight for name, weight in config.weights.items()} or {"loss": 1.0}


def task_of(config: "EvomergeConfig", work: Work) -> Task:
    """The parents and how they are measured. Raises `Failed` for one parent alone."""
    found = {folder_digest(folder): folder for folder in (work.base, *work.siblings) if folder}
    if len(found) < 2:
        raise Failed("evomerge needs at least two parents that differ", Cause.BASE_MODEL)
    trunk = work.siblings[0].parent / TRUNK if work.siblings else None
    ancestor = trunk if config.ancestor == "auto" and trunk and trunk.is_dir() else None
    work.note("parents", folders=[str(folder) for folder in found.values()], task_vectors_from=ancestor or "their mean")
    return Task(
        parents=tuple(found.values()), digests=tuple(found), ancestor=ancestor, data=work.data,
        share=config.fitness_share, tokens=config.fitness_tokens, questions=config.fitness_questions,
        context=config.context_length, answer_tokens=config.answer_tokens, precision=config.precision,
        device=str(work.device),
    )  # fmt: skip


def searched(work: Work, search: Evolution, task: Task) -> tuple[Evolution, float]:
    """The search when it is done, and the seconds that it took over all attempts."""
    checkpoints, spent, noted = Checkpoints(work.folder / "search", ".state"), 0.0, 0
    if (found := checkpoints.newest()) is not None:
        kept = json.loads(found[1].read_bytes())
        search.restore(kept["search"])
        spent, noted = kept["seconds"], complete(search)
        work.note("resumed", merges=search.told)
    begun = time.monotonic()

    def told() -> None:
        nonlocal noted
        seconds = spent + time.monotonic() - begun
        state = json.dumps({"search": search.state(), "seconds": seconds}).encode()
        checkpoints.save(search.told, lambda file: file.write(state))
        for number in range(noted, complete(search)):
            work.note("generation", **search.told_of(number))
        noted = complete(search)
        metrics = search.told_of(noted - 1) if noted else {}
        numbers = {
            f"fitness_{name}": metrics[name] for name in ("best", "mean") if math.isfinite(metrics.get(name, math.inf))
        }
        work.report(Progress(step=search.told, total_steps=search.budget, seconds=seconds, metrics=numbers))

    assert work.evolve is not None
    work.evolve(search, partial(evaluate, task), told)
    return search, spent + time.monotonic() - begun


def complete(search: Evolution) -> int:
    """How many generations are told."""
    return sum(all(trial.told for trial in generation) for generation in search.generations)


def keep(path: Path, search: Evolution, pick: Trial) -> None:
    """The archive: every generation in numbers, every merge with what it measured, the Pareto set and the choice."""

    def line(trial: Trial) -> dict[str, Any]:
        return {"recipe": trial.recipe, "measured": trial.measured}

    whole = {
        "generations": [search.told_of(number) for number in range(len(search.generations))],
        "merges": [[line(trial) for trial in generation] for generation in search.generations],
        "pareto": [line(trial) for trial in search.pareto()], "chosen": line(pick),
    }  # fmt: skip
    write_durably(path, lambda file: file.write(json.dumps(whole, indent=1).encode()))


def worth(work: Work, task: Task) -> dict[str, float]:
    """The merge beside the best of its parents and beside their plain average, on the text that judges the stage."""
    most = work.run.stages[0].config.get("held_out_tokens", 8192)
    documents = held_out(work.data)
    asked = questions_of(documents, JUDGES_QUESTIONS)

    def measured(learner: Learner) -> tuple[float, float]:
        learner.model.to(work.device)
        answers = answered(learner, asked, task.answer_tokens) if asked else 0.0
        return quality(learner, documents, most, device=work.device).loss, answers

    parents = [measured(load(folder)) for folder in task.parents]
    count = len(parents)
    average = measured(built(task, {"operator": "linear", "weights": [[1 / count] * count] * 2}))
    best, merge = min(parents), measured(load(work.output))
    better = [loss for loss, answers in parents if loss < merge[0] and answers >= merge[1]]
    for number, (loss, answers) in enumerate(parents):
        work.note("parent", number=number, held_out_loss=round(loss, 4), answers=round(answers, 4))
    return {
        "held_out_loss": merge[0], "held_out_loss_best_parent": best[0], "held_out_loss_average": average[0],
        "held_out_loss_mean_parent": sum(loss for loss, _ in parents) / count, "answers_before": parents[0][1],
        "answers": merge[1], "answers_best_parent": best[1], "answers_average": average[1], "parents": float(count),
        "outdone_by": merge[0] - min(better, default=merge[0]),
    }  # fmt: skip


def of_the_search(search: Evolution, pick: Trial, seconds: float) -> dict[str, float]:
    """What the search measured, on its own text."""
    ended = search.told_of(len(search.generations) - 1)
    first = search.generations[0]
    told = [trial.measured for trial in search.trials if trial.alive and trial.measured]
    numbers = {
        "merges": float(search.told), "merges_failed": float(search.told - len(told)), "search_seconds": seconds,
        "merges_per_minute": 60 * search.told / seconds if seconds else 0.0,
        "merge_seconds": middle([measured["merge_seconds"] for measured in told]),
        "diversity": ended["diversity"], "pareto": float(len(search.pareto())), "fitness": search.value(pick),
        "fitness_best_parent": min(search.value(trial) for trial in first[:-1]),
        "fitness_average": search.value(first[-1]),
    }  # fmt: skip
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def middle(values: Sequence[float]) -> float:
    """The median."""
    return sorted(values)[len(values) // 2]
