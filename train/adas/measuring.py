"""What is measured around the search: which tasks the base knows at all, what each expert does, who dispatches well."""

from collections.abc import Mapping, Sequence

from train.adas import questions as asked
from train.adas.design import DEFAULT, Design
from train.adas.dispatching import accuracy, fitted, prompted
from train.adas.experts import Composer
from train.adas.mixing import losses
from train.adas.questions import Part, Question, right
from train.adas.running import Ran, run
from train.data.packing import Batch
from train.data.sources import Document
from train.tools import TOOLS

PROBED = 48  # questions of a kind
PROMPTED = 30  # questions that the model itself is asked to classify


def answers(composer: Composer, design: Design, questions: Sequence[Question], seed: int) -> tuple[Ran, list[bool]]:
    """The design executed on the questions, and which of its answers are right."""
    ran = run(design, composer, [question.text for question in questions], seed=seed)
    return ran, [right(q, outcome.answer) for q, outcome in zip(questions, ran.outcomes, strict=True)]


def success(composer: Composer, design: Design, questions: Sequence[Question], seed: int) -> float:
    """Share (0 to 1) of right answers."""
    _, verdicts = answers(composer, design, questions, seed)
    return sum(verdicts) / len(verdicts)


def known(composer: Composer, families: Sequence[str], level: int, least: float, max_tokens: int, seed: int
          ) -> dict[str, int]:  # fmt: skip
    """The families that are worth asking, each with the curriculum's level: 0 where the base gets less than `least`.

    Asked plainly, and once more with tools, for a model may have learnt to leave a task to them.
    """
    found: dict[str, int] = {}
    plain = DEFAULT.model_copy(update={"max_tokens": max_tokens})
    designs = (plain, plain.model_copy(update={"tools": tuple(TOOLS), "offered": False}))
    for family in families:
        names = {asked.ARITHMETIC: asked.CALCULATING, asked.LISTS: asked.LISTING}.get(family, ())
        some = asked.probe(names, PROBED, level, seed) if names else []
        knows = bool(some) and max(success(composer, design, some, seed) for design in designs) >= least
        if knows or family != asked.LISTS:
            found[family] = level if knows else 0
    return found


def effects(
    composer: Composer, rows: Mapping[str, list[Batch]], questions: Mapping[str, Sequence[Question]], seed: int
) -> dict[str, float]:
    """Every expert alone, on every family: how loss (nats per token) and success (0 to 1) change."""
    base_loss = losses(composer.learner, rows, composer.device)
    base = {family: success(composer, DEFAULT, some, seed) for family, some in questions.items()}
    found = {f"loss_{family}_before": value for family, value in base_loss.items()}
    found |= {f"success_{family}_before": value for family, value in base.items()}
    for name in composer.experts.vectors:
        with composer.using({name: 1.0}):
            for family, value in losses(composer.learner, rows, composer.device).items():
                found[f"expert_{name}_on_{family}_loss"] = value - base_loss[family]
        design = DEFAULT.model_copy(update={"experts": {name: 1.0}})
        for family, some in questions.items():
            found[f"expert_{name}_on_{family}_success"] = success(composer, design, some, seed) - base[family]
    return found


def dispatched(
    composer: Composer, levels: Mapping[str, int], texts: Sequence[Document], count: int, seed: int
) -> dict[str, float]:
    """Fit the dispatcher on `count` prompts a family; its accuracy and the model's own, on other prompts."""
    learnt, tested = (prompts(part, levels, texts, count, seed) for part in (Part.EXAMPLES, Part.JUDGE))
    if len({family for _, family in learnt}) < 2:
        return {}
    composer.experts.dispatcher = fitted(composer.learner, *zip(*learnt, strict=True))
    names = composer.experts.dispatcher.families
    asking = tested[:: max(1, len(tested) // PROMPTED)]
    guesses = [prompted(composer.learner, question, names) == family for question, family in asking]
    return {
        "dispatcher_accuracy": accuracy(
            composer.learner, composer.experts.dispatcher, *zip(*tested, strict=True)
        ),
        "dispatcher_accuracy_prompted": sum(guesses) / len(guesses), "dispatcher_families": float(len(names)),
    }  # fmt: skip


def prompts(
    part: Part, levels: Mapping[str, int], texts: Sequence[Document], count: int, seed: int
) -> list[tuple[str, str]]:
    """Questions with their family, and openings of texts; half of the texts are for measuring."""
    found = [
        (question.text, family)
        for family, level in levels.items()
        for question in asked.family_questions(family, part, count, level, seed)[:count]
    ]
    for document in texts[: 2 * count]:
        judged = int(document.fingerprint[12:14], 16) % 2 == 0
        if judged == (part is Part.JUDGE):
            found.append((asked.opening(document), asked.TEXT))
    return found


def sampled(levels: Mapping[str, int], count: int, seed: int) -> dict[str, list[Question]]:
    """The search's questions by family, so many of each at most."""
    return {
        family: asked.family_questions(family, Part.SEARCH, 2 * count, level, seed)[:count]
        for family, level in levels.items()
    }
