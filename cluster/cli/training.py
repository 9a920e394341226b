"""`village train`, `village runs ...` and `village phases`: the forge from a terminal."""

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from cluster.cli import tour as guided
from cluster.cli.client import Client, Refused
from cluster.settings import Settings

Told = argparse.Namespace
console = Console(highlight=False)


def train(settings: Settings, told: Told) -> int:
    """Train a model and watch it: one phase, several, or a pipeline by name."""
    client = Client(settings)
    run = client.post("/v1/models/train", request(told))
    console.print(f"run {run['task_id']}, model {run['model_id']}")
    ended = guided.watch_training(client, run["task_id"], console)
    stages(ended)
    return 0 if ended["status"] == "completed" else 1


def request(told: Told) -> dict[str, Any]:
    """The body of `POST /v1/models/train`. Raises `Refused`."""
    try:
        parameters = json.loads(told.parameters)
    except ValueError as error:
        raise Refused(f"--parameters is not JSON: {error}") from error
    if told.base:
        parameters["base_models"] = told.base
    named: dict[str, Any] = {"phase_name": told.phase[0]}
    if len(told.phase) > 1:
        named = {"phases": [{"phase_name": name} for name in told.phase]}
    sizes = {"max_steps": told.steps, "batch_size": told.batch, "model_name": told.name}
    return named | {"parameters": parameters} | {name: value for name, value in sizes.items() if value}


def stages(run: dict[str, Any]) -> None:
    """A line for each phase of a run."""
    table = Table("phase", "state", "step", "seconds", "loss before", "after", "gate", box=None)
    for stage in run["phases"]:
        before, after = (f"{q['loss']:.3f}" if (q := stage[name]) else "" for name in ("before", "after"))
        step = f"{stage['step']}/{stage['total_steps']}"
        table.add_row(
            stage["phase"], stage["state"], step, f"{stage['seconds']:.0f}", before, after, stage["reason"]
        )  # fmt: skip
    console.print(table)
    console.print(f"{run['task_id']} is {run['status']}" + (f": {run['error']}" if run["error"] else ""))


def runs(settings: Settings, told: Told) -> int:
    """The newest runs."""
    page = Client(settings).get(f"/v1/models/train?limit={told.limit}&status={told.status}")
    table = Table(Column("run", no_wrap=True), "status", "phase", "over", "progress", box=None)
    for run in page["runs"]:
        progress = run["progress"]
        over = f"{progress['phases_completed']} of {progress['total_phases']}"
        share = f"{progress['overall_progress']:.0%}"
        table.add_row(run["task_id"], run["status"], run["current_phase"], over, share)
    console.print(table)
    return 0


def show(settings: Settings, told: Told) -> int:
    """One run, phase by phase."""
    stages(Client(settings).get(f"/v1/models/train/{told.run}/status"))
    return 0


def log(settings: Settings, told: Told) -> int:
    """The last lines of a run's log."""
    for line in Client(settings).get(f"/v1/models/train/{told.run}/logs?tail={told.tail}")["logs"]:
        more = {name: value for name, value in line.items() if name not in ("at", "level", "message")}
        console.print(f"{line['at']} {line['message']} {json.dumps(more) if more else ''}", soft_wrap=True)
    return 0


def trials(settings: Settings, told: Told) -> int:
    """What a run's searches tried."""
    page = Client(settings).get(f"/v1/models/train/{told.run}/trials?limit=100")
    table = Table("number", "phase", "status", "candidate", "measured", box=None)
    for trial in page["trials"]:
        measured = ", ".join(f"{name} {value:.4g}" for name, value in list(trial["metrics"].items())[:4])
        table.add_row(
            str(trial["number"]), trial["phase"], trial["status"], json.dumps(trial["candidate"])[:80], measured
        )
    console.print(table)
    return 0


def cancel(settings: Settings, told: Told) -> int:
    """End a run."""
    stages(Client(settings).post(f"/v1/models/train/{told.run}/cancel", {}))
    return 0


def resume(settings: Settings, told: Told) -> int:
    """Take a run up again that failed or was cancelled, and watch it."""
    client = Client(settings)
    client.post(f"/v1/models/train/{told.run}/resume", {})
    ended = guided.watch_training(client, told.run, console)
    stages(ended)
    return 0 if ended["status"] == "completed" else 1


def phases(settings: Settings, told: Told) -> int:
    """The phases, or the parameters of one of them."""
    found = Client(settings).get("/v1/models/train/phases")
    if told.phase:
        one = next((phase for phase in found["phases"] if told.phase in (phase["name"], *phase["aliases"])), None)
        if one is None:
            raise Refused(f"no phase {told.phase}")
        for name, field in one["parameters"]["properties"].items():
            console.print(f"{name} = {json.dumps(field.get('default'))}")
        return 0
    for phase in found["phases"]:
        console.print(f"{phase['name']:<18} {phase['what']} ({phase['paper']})", soft_wrap=True)
    for name, parts in found["pipelines"].items():
        console.print(f"{name:<18} {' '.join(parts)}", soft_wrap=True)
    return 0


def grammar(verbs: Any, verb: Any) -> None:
    """`train`, `runs` and `phases`."""
    training = verb("train", train)
    training.add_argument("phase", nargs="*", default=["cognate"], help="a phase, several in order, or a pipeline")
    training.add_argument("--steps", type=int)
    training.add_argument("--batch", type=int)
    training.add_argument("--base", action="append", metavar="MODEL", help="model to begin with; may be repeated")
    training.add_argument("--name", default="", help="of the model")
    training.add_argument("--parameters", default="{}", help="JSON, as in the API")
    verb("phases", phases).add_argument("phase", nargs="?")
    parts = verbs.add_parser("runs", help="Training runs.").add_subparsers(required=True, metavar="command")
    listing = verb("list", runs, parts)
    listing.add_argument("--limit", type=int, default=10)
    listing.add_argument("--status", default="all")
    for name, action in (
        ("show", show), ("log", log), ("trials", trials), ("cancel", cancel), ("resume", resume),
    ):  # fmt: skip
        verb(name, action, parts).add_argument("run")
    parts.choices["log"].add_argument("--tail", type=int, default=50)
