"""One stage of a run: which model it begins with, what it made, what that is worth, and the gate. No Ray, no store."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from train.causes import Cause, Failed
from train.data.prepared import held_out
from train.evaluate.perplexity import quality
from train.evaluate.quality import Quality
from train.manifest import folder_digest, write_durably
from train.model.learner import load
from train.phases import catalogue
from train.phases.phase import Outcome, Phase, Verdict, Work, stage_folder
from train.resumable import forget_peak, peak_memory_bytes, together
from train.runs import Run

OUTCOME = "outcome.json"
CARRIED = ("agent.json",)  # adas's


class Ended(BaseModel):
    """`outcome.json` of a stage that is over: written last, so that what it says is there."""

    model_config = ConfigDict(frozen=True)

    verdict: Verdict
    before: Quality
    after: Quality
    metrics: dict[str, float]
    digest: str  # of the model's folder that the stage made
    seconds: float


@dataclass(frozen=True)
class Standing:
    """The model that a run has got to: none before a first phase that starts from nothing."""

    model: Path | None
    siblings: tuple[Path, ...] = ()
    quality: Quality | None = None  # where it was measured already


def ended(home: Path, run: Run, number: int) -> Ended | None:
    """What became of the stage; None while it is not over."""
    try:
        return Ended.model_validate_json((stage_folder(home, run, number) / OUTCOME).read_bytes())
    except (OSError, ValidationError):
        return None


def standing(home: Path, run: Run, number: int, bases: tuple[Path, ...]) -> Standing:
    """What stage `number` begins with. `bases` are the folders of the run's `base_models`.

    Raises `Failed` where the model folder of an earlier stage is not as it was left.
    """
    here = Standing(bases[0] if bases else None, bases[1:])
    for earlier in range(number):
        outcome, folder = ended(home, run, earlier), stage_folder(home, run, earlier)
        if outcome is None:
            raise Failed(f"stage {earlier} of the run has no outcome", Cause.DAMAGED)
        if outcome.verdict.outcome is Outcome.PASS:
            siblings = tuple(sorted((folder / "siblings").glob("[0-9]*")))
            here = Standing(folder / "model", siblings, outcome.after)
            if not here.model or not here.model.is_dir() or folder_digest(here.model) != outcome.digest:
                raise Failed(f"the model of stage {earlier} is not as it was left", Cause.DAMAGED)
    return here


def execute(phase: Phase[Any], work: Work, known: Quality | None) -> Ended | None:
    """Do the stage and judge it; at most once. Rank 0 returns the outcome, others None.

    `known` is the quality of `work.base` where it was measured. Raises `Failed` when the gate ends the run.
    """
    if (done := ended(work.home, work.run, work.number)) is not None:
        return done
    begun = time.monotonic()
    forget_peak()
    before = known
    if before is None and work.base is not None and work.rank == 0:
        before = measure(work, work.base)
    metrics = phase.run(work)
    together(work)
    if work.rank != 0:
        return None
    carry(work)
    after = measure(work, work.output)
    before = before or at_the_start(metrics, after)
    verdict = phase.gate(before, after, metrics)
    spent = {
        "seconds": time.monotonic() - begun, "peak_memory_bytes": peak_memory_bytes(),
        "model_bytes": float(sum(path.stat().st_size for path in work.output.iterdir())),
    }  # fmt: skip
    outcome = Ended(
        verdict=verdict, before=before, after=after, metrics=metrics | spent, digest=folder_digest(work.output),
        seconds=spent["seconds"],
    )  # fmt: skip
    write_durably(work.folder / OUTCOME, lambda file: file.write(outcome.model_dump_json(indent=1).encode()))
    work.note("gate", phase=phase.name, outcome=verdict.outcome.value, reason=verdict.reason)
    return outcome


def carry(work: Work) -> None:
    """What an earlier phase left beside the weights goes on with them, unless this one left its own."""
    for name in CARRIED:
        if work.base and (work.base / name).exists() and not (work.output / name).exists():
            content = (work.base / name).read_bytes()
            write_durably(work.output / name, lambda file, content=content: file.write(content))


def measure(work: Work, folder: Path) -> Quality:
    """The model in the folder, as whoever loads it would find it, on the run's held-out text."""
    learner = load(folder)
    learner.model.to(work.device)
    first = work.run.stages[0].config  # every stage is measured on as much
    found = quality(learner, held_out(work.data), first.get("held_out_tokens", 8192), device=work.device)
    work.note("measured", model=folder.name, loss=round(found.loss, 4), accuracy=round(found.accuracy, 4))
    return found


def at_the_start(metrics: dict[str, float], after: Quality) -> Quality:
    """The quality of the random weights that a first phase began with, as its loop measured it."""
    loss = metrics["held_out_loss_before"]
    return after.model_copy(
        update={
            "loss": loss, "accuracy": metrics["accuracy_before"],
            "bits_per_byte": after.bits_per_byte * loss / after.loss,
        }
    )  # fmt: skip


def configured(run: Run, number: int) -> Phase[Any]:
    """The phase of that stage."""
    return catalogue.phase(run.stages[number].phase, run.stages[number].config)


def begun(work: Work, here: Standing) -> Work:
    """The work with what the stage begins with."""
    return replace(work, base=here.model, siblings=here.siblings)


def seeded(seed: int) -> None:
    """The same chance in every attempt at a stage."""
    torch.manual_seed(seed)


def told(run: Run, home: Path) -> dict[str, Any]:
    """`training.json` of the finished model, read off the stages' outcomes."""
    outcomes = [ended(home, run, number) for number in range(len(run.stages))]
    rows, passed = [], []
    for stage, outcome in zip(run.stages, outcomes, strict=True):
        if outcome is None:
            raise Failed(f"{stage.phase} has no outcome", Cause.DAMAGED)
        if outcome.verdict.outcome is Outcome.PASS:
            passed.append(stage.phase)
        rows.append({"phase": stage.phase, "config": stage.config} | json.loads(outcome.model_dump_json()))
    return {"phases": passed, "stages": rows}
