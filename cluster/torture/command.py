"""Running seeds one after the other, and telling what came of them."""

import asyncio
import json
import shutil
import tempfile
import time
from pathlib import Path

from cluster.torture.checker import check, summary
from cluster.torture.history import load, save
from cluster.torture.plan import Plan, Size, drawn
from cluster.torture.replay import Finding
from cluster.torture.world import torture

SHOWN, LONGEST = 20, 300


def seeds(first: int, count: int, size: Size, home: str) -> int:
    """So many seeds; 1 if one of them broke a promise."""
    broken = [seed for seed in range(first, first + count) if one(drawn(seed, size), home)]
    if count > 1:
        print(f"{count - len(broken)} of {count} seeds kept every promise")
    return 1 if broken else 0


def look(file: Path) -> int:
    """At a history that was kept."""
    history = load(file.read_text().splitlines())
    return tell(check(history), summary(history))


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
        print(f"  BROKEN  {str(finding).splitlines()[0][:LONGEST]}")
    if len(findings) > SHOWN:
        print(f"  and {len(findings) - SHOWN} more")
    return 1 if findings else 0
