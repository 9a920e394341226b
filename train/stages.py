"""Stages one after the other, as a training worker or the job goes through them."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from train.causes import Cause, Failed
from train.phases.phase import Outcome, Phase, Work
from train.reporting import Reporter
from train.resumable import together
from train.runs import Run
from train.stage import begun, configured, ended, execute, seeded, standing

Tried = Callable[[Phase[Any], Work], dict[str, float]]


def through(
    numbers: list[int], bases: tuple[Path, ...], reporter: Reporter | None, work: Work, tried: Tried | None = None
) -> None:
    """Do these stages; those that are over already are only told about. Raises `Failed` where a gate ends the run.

    `tried` is how a phase with a search over its parameters is run.
    """
    for number in numbers:
        outcome = ended(work.home, work.run, number)
        if outcome is None:
            if reporter:
                reporter.begin(number)
            here = standing(work.home, work.run, number, bases)
            phase = searched(configured(work.run, number), tried)
            seeded(phase.config.seed)
            work.note("stage", number=number, phase=phase.name)
            outcome = execute(phase, begun(replace(work, number=number), here), here.quality)
        if reporter and outcome:
            reporter.end(number, outcome)
        together(work)
        if outcome and outcome.verdict.outcome is Outcome.FAIL:
            phase_name = work.run.stages[number].phase
            raise Failed(f"the gate of {phase_name} refused the model: {outcome.verdict.reason}", Cause.GATE)


def searched(phase: Phase[Any], tried: Tried | None) -> Phase[Any]:
    """The phase; one with a search is run by trying, all else about it is its own."""
    if phase.config.search is not None:
        if tried is None:
            raise Failed("a search over parameters needs the job", Cause.OTHER)
        phase.run = partial(tried, phase)  # type: ignore[method-assign]
    return phase


def groups(run: Run) -> list[list[int]]:
    """The run's stages as they are run together: neighbours that want the same workers share them."""
    found: list[list[int]] = []
    for number in range(len(run.stages)):
        before = found[-1][-1] if found else None
        if before is not None and alike(run, before, number):
            found[-1].append(number)
        else:
            found.append([number])
    return found


def in_job(phase: Phase[Any]) -> bool:
    """Whether the stage runs in the job itself, with its trials in processes of their own."""
    return phase.place == "trials" or phase.config.search is not None


def alike(run: Run, one: int, other: int) -> bool:
    """Whether two stages may run in the same workers."""
    first, second = configured(run, one), configured(run, other)
    if in_job(first) or in_job(second):
        return False
    same = ("scale", "workers", "threads")
    return all(getattr(first.config, name) == getattr(second.config, name) for name in same)
