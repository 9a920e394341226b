"""Stages run in this very process, without Ray and Redis: for tests, and for trying a phase by hand.

`PYTHONPATH=tests python -m tiny_forge HOME PIPELINE.yaml` runs a pipeline file's stages in the folder HOME.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from cluster.clock import utc_now
from cluster.settings import ROOT
from train.data.prepared import prepare
from train.phases import catalogue
from train.phases.phase import Work, run_folder
from train.runs import Run
from train.search import in_turn
from train.stage import Ended, ended
from train.stages import through

# Three seconds on one core: what matters is that everything is there, not that it is good.
TINY = {
    "vocab_size": 512, "context_length": 64, "batch_size": 2, "max_steps": 40, "held_out_tokens": 1024,
    "grokfast_lamb": 0.0, "parameter_budget": 1_500_000, "target_architecture": "llama-1m",
}  # fmt: skip


def run_of(phases: Sequence[tuple[str, Mapping[str, Any]]], run_id: str = "task_tiny") -> Run:
    at = utc_now()
    stages = catalogue.stages([(name, dict(parameters)) for name, parameters in phases])
    return Run(
        run_id=run_id, owner="user_ann", stages=stages, model_id="model_tiny", model_name="tiny", created_at=at,
        updated_at=at,
    )  # fmt: skip


def forge(
    home: Path, phases: Sequence[tuple[str, Mapping[str, Any]]], *, report: Any = None, note: Any = None,
    run_id: str = "task_tiny", device: str = "cpu",
) -> list[Ended]:  # fmt: skip
    """All stages of the phases, one after the other; what each came to. Called again it goes on where it was."""
    run = run_of(phases, run_id)
    first = catalogue.phase(run.stages[0].phase, run.stages[0].config).config
    prepare(run_folder(home, run.run_id) / "data", ROOT, first)
    work = Work(
        run=run, number=0, home=home, root=ROOT, rank=0, world=1, device=torch.device(device),
        wrap=lambda module: module, report=report or (lambda _: None), note=note or (lambda *_, **__: None),
        evolve=in_turn,
    )  # fmt: skip
    through(list(range(len(run.stages))), tuple(Path(base) for base in first.base_models), None, work)
    return [outcome for number in range(len(run.stages)) if (outcome := ended(home, run, number))]


def told(message: str, **fields: Any) -> None:
    print(message, fields, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("THREADS", "2")))
    read = yaml.safe_load(Path(sys.argv[2]).read_text())
    wanted = [(item, {}) if isinstance(item, str) else next(iter(item.items())) for item in read]
    for outcome in forge(Path(sys.argv[1]), wanted, note=told):
        print(outcome.model_dump_json(indent=1))
