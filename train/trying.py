"""A phase run by trying: several trials with other parameters, of which the best becomes the stage's."""

import json
import shutil
from typing import Any

from train.loop import Progress
from train.manifest import write_durably
from train.model.checkpoint import publish
from train.phases.phase import Phase, Work
from train.resumable import CURVE
from train.trials import Children


def tried(children: Children, phase: Phase[Any], work: Work) -> dict[str, float]:
    """Leaves the best trial's model in `work.output`, and what was chosen in `chosen.json`. Its trials are resumed."""
    from train.tune import best

    search = phase.config.search
    progress = Progress(total_steps=search.trials)

    def told(done: int) -> None:
        progress.step = done
        work.report(progress)

    config = phase.config.model_dump(mode="json") | {"search": None}
    name, point, metrics = best(phase.name, config, search, work, children, told)
    work.note("best trial", folder=name, point=point)
    folder = work.folder / name

    def copy(target: Any) -> None:
        shutil.copytree(folder / "model", target, dirs_exist_ok=True)

    publish(work.output, copy)
    if (folder / "siblings").exists() and not work.sibling_outputs.exists():
        shutil.copytree(folder / "siblings", work.sibling_outputs)
    if (folder / CURVE).exists():
        shutil.copyfile(folder / CURVE, work.folder / CURVE)
    write_durably(work.folder / "chosen.json", lambda file: file.write(json.dumps(point).encode()))
    numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if name not in TUNES_OWN} | {"trials": float(search.trials)}


TUNES_OWN = frozenset(
    {
        "done", "training_iteration", "timestamp", "time_this_iter_s", "time_total_s", "pid", "time_since_restore",
        "iterations_since_restore", "step", "should_checkpoint", "warmup_time",
    }
)  # fmt: skip
