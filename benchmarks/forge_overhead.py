"""Where a run's time went beyond its training steps, and its memory: `python -m benchmarks.forge_overhead RUN_FOLDER`.

Reads what the run left: `log.jsonl`, each stage's `outcome.json`, the data's `report.json`. A run that was broken off
and taken up again has every attempt's time in it. Memory is the worker's peak in multiples of the model folder's size.
"""

import json
import sys
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def lines(folder: Path) -> list[Line]:
    """The run's log, oldest first, each line with its moment in seconds under `time`."""
    read = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines() if line.endswith("}")]
    return [line | {"time": datetime.fromisoformat(line["at"]).timestamp()} for line in read]


def whole_run(log: list[Line], report: dict[str, float]) -> dict[str, float]:
    """Seconds before the first stage, between stages and after the last, each by what they went to."""
    found = {"job start": 0.0, "data": report.get("prepare_seconds", 0.0), "workers": 0.0, "end": 0.0}
    if "asked_at" in log[0]:
        found["job start"] = log[0]["time"] - datetime.fromisoformat(log[0]["asked_at"]).timestamp()
    over = log[0]["time"]  # since when nothing was done but to get ready
    for line in log:
        if line["message"] == "stage":
            found["workers"] += line["time"] - over
        if line["message"] in ("stage", "gate", "attempt"):
            over = line["time"]
    if log[-1]["message"].startswith("the run is"):
        found["end"] = log[-1]["time"] - over
    found["workers"] = max(0.0, found["workers"] - found["data"])
    return found


def stages(folder: Path, log: list[Line]) -> list[dict[str, Any]]:
    """Each stage's seconds: in all, in steps, in checkpoints, in measuring, in anything else; and its memory."""
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("[0-9]*-*/outcome.json")):
        outcome = json.loads(path.read_text())
        number, metrics = int(path.parent.name.split("-")[0]), outcome["metrics"]
        mine = within(log, number)
        steps = metrics.get("training_seconds", 0.0)
        saved = sum(line.get("seconds", 0.0) for line in mine if line["message"] == "checkpoint")
        # What a stage measures of its models begins with loading them: the time since the line before.
        judged = sum(b["time"] - a["time"] for a, b in pairwise(mine) if b["message"] == "measured")
        judged += sum(line.get("seconds", 0.0) for line in mine if line["message"] == "held-out text")
        found.append(
            {
                "stage": path.parent.name, "seconds": outcome["seconds"], "steps": steps, "checkpoints": saved,
                "measuring": judged, "other": max(0.0, outcome["seconds"] - steps - saved - judged),
                "memory": metrics["peak_memory_bytes"] / metrics["model_bytes"],
                "memory_mb": metrics["peak_memory_bytes"] / 1e6,
            }
        )  # fmt: skip
    return found


def within(log: list[Line], number: int) -> list[Line]:
    """The lines of a stage, from its beginning to its gate, over all attempts."""
    mine, inside = [], False
    for line in log:
        if line["message"] == "stage":
            inside = line["number"] == number
        if inside:
            mine.append(line)
        if line["message"] == "gate":
            inside = False
    return mine


def show(run: dict[str, float], rows: list[dict[str, Any]]) -> None:
    """Both tables, in seconds."""
    for name, seconds in run.items():
        print(f"{name:<24}{seconds:>9.1f}")
    columns = ("seconds", "steps", "checkpoints", "measuring", "other", "memory", "memory_mb")
    print(f"\n{'stage':<24}" + "".join(f"{name:>13}" for name in columns))
    for row in rows:
        print(f"{row['stage']:<24}" + "".join(f"{row[name]:>13.1f}" for name in columns))
    steps, whole = sum(row["steps"] for row in rows), sum(run.values()) + sum(row["seconds"] for row in rows)
    if whole:
        print(f"\nof {whole:.1f} s {steps:.1f} s ({100 * steps / whole:.0f} %) were training steps")


def main() -> None:
    """Print where the time of the run in the folder went."""
    folder = Path(sys.argv[1])
    log, report = lines(folder), folder / "data" / "report.json"
    show(whole_run(log, json.loads(report.read_text()) if report.exists() else {}), stages(folder, log))


if __name__ == "__main__":
    main()
