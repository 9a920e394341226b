"""What each phase of a run came to, as the table of docs/forge.md: `python -m benchmarks.forge_table RUN_FOLDER`.

Read off the stages' `outcome.json`: held-out loss before and after on the same text, the gate and its reason, seconds,
and the most memory that the phase's process held, in multiples of the first model's bytes (most of it is Python,
torch and Ray).
"""

import sys
from pathlib import Path
from typing import Any

from benchmarks.forge_curves import outcomes


def row(name: str, outcome: dict[str, Any], model_bytes: float) -> str:
    """One phase's line."""
    metrics, verdict = outcome["metrics"], outcome["verdict"]
    before, after = outcome["before"]["loss"], outcome["after"]["loss"]
    memory = metrics["peak_memory_bytes"] / model_bytes
    what = {"pass": "passed", "keep": "kept the model before", "fail": "failed"}[verdict["outcome"]]
    return (
        f"| `{name}` | {before:.3f} | {after:.3f} | {what}: {verdict['reason']} | {outcome['seconds']:.0f} | "
        f"{metrics['peak_memory_bytes'] / 1e6:.0f} MB, {memory:.0f}x |"
    )


def main() -> None:
    """The table."""
    print("| phase | loss before | after | gate | seconds | memory |")
    print("| --- | --- | --- | --- | --- | --- |")
    total = 0.0
    over = outcomes(Path(sys.argv[1]))
    for name, outcome in over:
        total += outcome["seconds"]
        print(row(name, outcome, over[0][1]["metrics"]["model_bytes"]))
    print(f"\n{total:.0f} seconds of work in all.")


if __name__ == "__main__":
    main()
