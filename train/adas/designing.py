"""What adas does: experts, what they are worth, the search over designs, the judgement, and the model's folder."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from train.adas import questions as asked
from train.adas.archive import Record, gain, jsonl, pareto, wilson, winner
from train.adas.asking import Model
from train.adas.design import AGENT, DEFAULT, Agent, Design, Example, Measurement
from train.adas.experts import EXPERTS, Composer, Experts
from train.adas.measuring import answers, dispatched, effects, known, sampled
from train.adas.mixing import cross_entropy_search, losses
from train.adas.questions import Part, Question, right
from train.adas.running import Ran, run
from train.adas.search import DesignSearch
from train.adas.space import Space
from train.adas.specialising import REPLAY, documents_of, parted, specialise
from train.causes import Cause, Failed
from train.data.packing import Batch
from train.data.prepared import texts
from train.data.sources import Corpus
from train.evaluate.perplexity import held_out_batches
from train.loop import Progress
from train.manifest import write_durably
from train.model.checkpoint import publish
from train.model.learner import load
from train.model.thoughts import thinks
from train.phases.phase import Work
from train.search import Candidate, Measured
from train.tools import TOOLS

if TYPE_CHECKING:
    from train.phases.adas import AdasConfig

SEARCH, QUESTIONS, ARCHIVE, MEASURED = "search.json", "questions.json", "archive.jsonl", "measured.json"


def design(config: "AdasConfig", work: Work) -> dict[str, float]:
    """Leaves the model, its agent and its experts in `work.output`; called again, goes on from what is there."""
    assert work.base is not None and work.evolve is not None
    return Designing(config, work, work.base).all()


class Designing:
    """One stage, step by step; each step that is over left a file."""

    def __init__(self, config: "AdasConfig", work: Work, base: Path) -> None:
        self.config, self.work, self.base = config, work, base
        self.corpus: Corpus = texts(work.data)
        learner = load(base)
        learner.model.to(work.device)
        self.max_tokens = config.max_tokens + (config.thought_tokens if thinks(learner) else 0)
        self.composer = Composer(learner, Experts())
        self.default = DEFAULT.model_copy(update={"max_tokens": self.max_tokens})

    def all(self) -> dict[str, float]:
        """Every step in its order."""
        config, composer = self.config, self.composer
        self.levels: dict[str, int] = self.kept(
            "known.json",
            lambda: known(composer, config.families, config.level, config.least_known, self.max_tokens, config.seed),
        )
        if not self.levels:
            raise Failed("the base knows nothing of the families of questions", Cause.DATA)
        if not (self.work.folder / MEASURED).exists():
            composer.experts = self.trained()
        measured = self.kept(MEASURED, self.worth)
        composer.experts = Experts.read(self.work.folder / EXPERTS)
        search = self.searched(tuple(measured["mixtures"]))
        return measured["metrics"] | self.delivered(search)

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, as JSON; made once."""
        path = self.work.folder / name
        if not path.exists():
            value = make()
            write_durably(path, lambda file: file.write(json.dumps(value).encode()))
        return json.loads(path.read_bytes())

    def trained(self) -> Experts:
        """The experts, one after the other."""
        config, learner, steps = self.config, self.composer.learner, self.config.max_steps
        total, experts = len(config.experts) * steps + config.budget_trials, Experts()
        for number, family in enumerate(config.experts):
            documents = documents_of(learner, family, self.corpus.training, self.levels.get(family, 0), config.seed)
            here = replace(self.work, report=partial(reported, self.work.report, number * steps, total))
            experts.vectors[family] = specialise(here, config, learner, family, documents)
        return experts

    def worth(self) -> dict[str, Any]:
        """Effects of the experts, the dispatcher, and the mixtures that designs may have; the experts go to a file."""
        config, composer, learner = self.config, self.composer, self.composer.learner
        rows: dict[str, list[Batch]] = {}
        metrics: dict[str, float] = {}
        mixtures: list[dict[str, float]] = [{}]
        if config.experts:
            sources = {family: self.documents(family) for family in config.experts}
            sources |= {REPLAY: learner.replay} if learner.replay else {}
            rows = {
                family: held_out_batches(
                    learner, parted(some)[1] or some, config.validation_tokens, min(512, learner.context)
                )
                for family, some in sources.items() if some
            }  # fmt: skip
            metrics = effects(composer, rows, sampled(self.levels, config.family_questions, config.seed), config.seed)
            writing = [document for document in self.corpus.training if document.text]
            metrics |= dispatched(composer, self.levels, writing, config.family_questions, config.seed)
            mixtures, more = self.mixed(rows)
            metrics |= more
            size = {name: sum(z.numel() for z in z_of.values()) for name, z_of in composer.experts.vectors.items()}
            metrics |= {"expert_parameters": float(max(size.values()))}
        write_durably(self.work.folder / EXPERTS, lambda file: file.write(composer.experts.content()))
        self.work.note("experts", **{name: round(value, 4) for name, value in metrics.items()})
        return {"metrics": metrics, "mixtures": mixtures}

    def documents(self, family: str) -> list[Any]:
        """What the family's expert learnt from, and what it is measured on."""
        return documents_of(
            self.composer.learner, family, self.corpus.training, self.levels.get(family, 0), self.config.seed
        )

    def mixed(self, rows: dict[str, list[Batch]]) -> tuple[list[dict[str, float]], dict[str, float]]:
        """The mixtures that do not harm the run's text: each expert's whole and half, then the best general one."""
        config, composer, learner = self.config, self.composer, self.composer.learner
        common = parted(self.corpus.training)[1]
        general = held_out_batches(learner, common, 2 * config.validation_tokens, min(512, learner.context))

        def mean(mixture: dict[str, float], some: dict[str, list[Batch]]) -> float:
            with composer.using(mixture):
                here = losses(learner, some, composer.device)
            return sum(here.values()) / len(here)

        def fitness(mixture: dict[str, float]) -> float:
            return mean(mixture, rows)

        names = list(config.experts)
        best, value = cross_entropy_search(
            fitness, names, rounds=config.mixture_rounds, population=config.mixture_population, seed=config.seed
        )
        wanted = [{name: weight} for name in names for weight in (0.5, 1.0)] + [best]
        before = mean({}, {"all": general})
        rises = [mean(mixture, {"all": general}) - before for mixture in wanted]
        harmless = [
            mixture for mixture, by in zip(wanted, rises, strict=True) if mixture and by <= config.loss_tolerance
        ]
        unlike = list({json.dumps(mixture): mixture for mixture in reversed(harmless)}.values())[::-1]
        self.work.note("general mixture", weights=best, loss=round(value, 4), rise=round(rises[-1], 4))
        metrics = {f"general_weight_{name}": best.get(name, 0.0) for name in names}
        return [{}, *unlike], metrics | {
            "mixture_loss_before": fitness({}), "mixture_loss": value, "mixtures_harmless": float(len(unlike)),
        }  # fmt: skip

    def searched(self, mixtures: tuple[dict[str, float], ...]) -> DesignSearch:
        """The search to its end."""
        config, folder = self.config, self.work.folder
        shown = asked.questions(Part.EXAMPLES, config.examples, self.levels, config.seed)
        space = Space(
            examples=tuple(Example(question=each.text, answer=each.taught) for each in shown), tools=tuple(TOOLS),
            mixtures=mixtures, dispatch=self.composer.experts.dispatcher is not None, max_tokens=self.max_tokens,
        )  # fmt: skip
        questions = self.kept(QUESTIONS, lambda: asked.questions(
            Part.SEARCH, config.rungs[-1], self.levels, config.seed))  # fmt: skip
        rungs = sorted({min(rung, len(questions)) for rung in config.rungs})
        search = DesignSearch(
            space, rungs, trials=config.budget_trials, seconds=config.budget_seconds,
            novelty_weight=config.novelty_weight, seed=config.seed,
            ask_model=Model(self.composer.learner, space) if config.proposer == "model" else None,
        )  # fmt: skip
        if (folder / SEARCH).exists():
            search.restore(json.loads((folder / SEARCH).read_bytes()))
        evaluating = partial(
            evaluate, base=str(self.base), experts=str(folder / EXPERTS), questions=str(folder / QUESTIONS),
            seed=config.seed, device=str(self.work.device),
        )  # fmt: skip
        assert self.work.evolve is not None
        self.work.evolve(search, evaluating, partial(self.told, search))
        write_durably(folder / ARCHIVE, lambda file: file.write(jsonl(search.records)))
        return search

    def told(self, search: DesignSearch) -> None:
        """Keep the search, and say how far it is."""
        write_durably(self.work.folder / SEARCH, lambda file: file.write(json.dumps(search.state()).encode()))
        before = len(self.config.experts) * self.config.max_steps
        best = max(search.records, key=lambda record: record.interval[0])
        self.work.report(Progress(
            step=before + search.told, total_steps=before + search.budget, seconds=search.spent,
            metrics={"best_success": best.success, "designs": float(len(search.records))},
        ))  # fmt: skip

    def delivered(self, search: DesignSearch) -> dict[str, float]:
        """Judge the winner and the default on unseen questions, and leave the better one's folder."""
        config, composer = self.config, self.composer
        chosen = winner(record for record in search.records if record.design.servable)
        found = chosen.design if chosen else self.default
        questions = asked.questions(Part.JUDGE, config.judge_questions, self.levels, config.seed)
        before, right_before = answers(composer, self.default, questions, config.seed)
        after, right_after = answers(composer, found, questions, config.seed)
        rose, error = gain(right_before, right_after)
        told = [measurement(before, right_before), measurement(after, right_after)]
        better = rose > error
        given = found if better else self.default
        agent = Agent(
            design=given.model_copy(update={"experts": {}}), merged=given.experts, measured=told[better],
            default=told[0],
        )  # fmt: skip
        self.work.note("judged", design=found.model_dump(exclude_defaults=True), delivered=better,
                       success=round(told[1].success, 4), default=round(told[0].success, 4))  # fmt: skip
        experts = composer.experts.rebased(composer.learner.model, agent.merged)

        def write(folder: Path) -> None:
            with composer.using(agent.merged):
                composer.learner.save(folder)
            (folder / AGENT).write_text(agent.model_dump_json(indent=1) + "\n")
            if experts.vectors:
                (folder / EXPERTS).write_bytes(experts.content())

        publish(self.work.output, write)
        return metrics_of(search, chosen, told) | {"success_gain": rose, "success_gain_error": error}


def reported(report: Callable[[Progress], None], done: int, total: int, progress: Progress) -> None:
    """A loop's progress as part of the stage's."""
    history = [point._replace(step=done + point.step) for point in progress.history]
    report(replace(progress, step=done + progress.step, total_steps=total, history=history))


def measurement(ran: Ran, verdicts: Sequence[bool]) -> Measurement:
    """Success with its interval, and what it costs."""
    low, high = wilson(sum(verdicts), len(verdicts))
    return Measurement(
        success=sum(verdicts) / len(verdicts), low=low, high=high, questions=len(verdicts),
        tokens_per_answer=ran.tokens_per_answer, seconds_per_answer=ran.seconds / len(verdicts),
    )  # fmt: skip


def metrics_of(search: DesignSearch, chosen: Record | None, told: list[Measurement]) -> dict[str, float]:
    """The numbers of the search and of the judgement."""
    found: dict[str, float] = {}
    for name, each in zip(("before", "after"), told, strict=True):
        found |= {
            f"success_{name}": each.success, f"success_{name}_low": each.low, f"success_{name}_high": each.high,
            f"cost_{name}": each.tokens_per_answer, f"seconds_per_answer_{name}": each.seconds_per_answer,
        }  # fmt: skip
    if search.asked_model:
        share = search.valid / search.asked_model
        found |= {"model_proposals": float(search.asked_model), "model_proposals_valid": share}
    return found | {
        "designs": float(sum(record.rung >= 0 for record in search.records)), "trials": float(search.told),
        "designs_failed": float(sum(record.failed for record in search.records)),
        "designs_asked_everything": float(sum(record.rung == len(search.rungs) - 1 for record in search.records)),
        "pareto_designs": float(len(pareto(search.records))), "search_seconds": search.spent,
        "search_success": chosen.success if chosen else 0.0, "judge_questions": float(told[0].questions),
        "merged_weight": sum(abs(weight) for weight in chosen.design.experts.values()) if chosen else 0.0,
    }  # fmt: skip


@lru_cache(maxsize=2)
def composed(base: str, experts: str, device: str) -> Composer:
    """The model with its experts, loaded once in a process."""
    learner = load(Path(base))
    learner.model.to(torch.device(device))
    return Composer(learner, Experts.read(Path(experts)))


def evaluate(candidate: Candidate, *, base: str, experts: str, questions: str, seed: int, device: str) -> Measured:
    """A design executed on its next questions: how many it gets right, what it generated, and how long it took."""
    some = [Question(*each) for each in json.loads(Path(questions).read_bytes())[candidate["start"] : candidate["end"]]]
    ran = run(
        Design.model_validate(candidate["design"]), composed(base, experts, device), [each.text for each in some],
        seed=seed + candidate["start"],
    )  # fmt: skip
    return {
        "right": float(sum(right(q, outcome.answer) for q, outcome in zip(some, ran.outcomes, strict=True))),
        "tokens": float(sum(outcome.tokens for outcome in ran.outcomes)), "seconds": ran.seconds,
        "questions": float(len(some)),
    }  # fmt: skip
