"""`village torture`: break a village of its own on purpose, and look whether it kept what it promises."""

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cluster.cli.client import Refused
from cluster.settings import Settings
from cluster.torture.checker import check, summary
from cluster.torture.history import load, save
from cluster.torture.plan import Plan, Size, drawn
from cluster.torture.replay import Finding
from cluster.torture.world import torture

SHOWN = 20
DEFAULT = Size()


def run(settings: Settings, told: argparse.Namespace) -> int:
    """Torture a village of its own, in a folder of its own: random load, kills, stops, wrong clocks, agents that lie.
    The same seed has the same plan. Exit status 1 if a promise was broken; the history is kept then.
    """
    if settings.profile == "production":
        raise Refused("not on a machine with VILLAGE_PROFILE=production: it takes all cores, and kills what it starts")
    if told.check:
        history = load(Path(told.check).read_text().splitlines())
        return tell(check(history), summary(history))
    size = Size(told.seconds, told.tasks, told.pause)
    broken = [seed for seed in range(told.seed, told.seed + told.seeds) if one(drawn(seed, size), told.home)]
    if told.seeds > 1:
        print(f"{told.seeds - len(broken)} of {told.seeds} seeds kept every promise")
    return 1 if broken else 0


def one(plan: Plan, home: str) -> int:
    """One seed; what is wrong is told with how to see it again."""
    folder = Path(home or tempfile.mkdtemp(prefix="village-torture-")) / f"seed-{plan.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps(plan.as_json(), indent=1))
    begun = time.monotonic()
    faults = len(plan.faults)
    print(f"seed {plan.seed}: {len(plan.tasks)} tasks, {faults} faults in {plan.size.seconds:g} s", flush=True)
    history = asyncio.run(torture(plan, folder))
    findings = check(history)
    print(f"  {time.monotonic() - begun:.1f} s", end=" ")
    status = tell(findings, summary(history))
    if findings:
        save(history, folder / "history.jsonl")
        size = plan.size
        print(f"  kept: {folder}/history.jsonl, plan.json, logs/")
        print(
            f"  again: village torture --seed {plan.seed} --seconds {size.seconds:g} --tasks {size.tasks}"
            f" --pause {size.pause_seconds:g}"
        )
    elif not home:
        shutil.rmtree(folder.parent)
    return status


def tell(findings: list[Finding], counts: dict[str, int]) -> int:
    """What happened, and what is wrong with it."""
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    for finding in findings[:SHOWN]:
        print(f"  BROKEN  {finding}")
    if len(findings) > SHOWN:
        print(f"  and {len(findings) - SHOWN} more")
    return 1 if findings else 0


def grammar(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """The grammar of this command."""
    made = verb("torture", run)
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--seeds", type=int, default=1, help="so many, from --seed on")
    made.add_argument("--seconds", type=float, default=DEFAULT.seconds, help="how long there are faults")
    made.add_argument("--tasks", type=int, default=DEFAULT.tasks)
    made.add_argument("--pause", type=float, default=DEFAULT.pause_seconds, help="longest stop of a process, seconds")
    made.add_argument("--home", default="", help="a folder for everything; a temporary one otherwise")
    made.add_argument("--check", metavar="FILE", default="", help="only look at a history that was kept")
