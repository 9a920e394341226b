"""The loss curves of a run, as pictures: `python -m benchmarks.forge_curves RUN_FOLDER PICTURE.png`.

Reads the stages' `curve.json` and `outcome.json`; needs matplotlib (the dev group).
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

SMOOTH = 0.9  # of an exponential mean over the steps
COLUMNS = 3


def curves(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """(title, curve) of every loop that a stage trained."""
    found = []
    for path in sorted(folder.glob("[0-9]*/*curve.json")):
        kind = path.name.removesuffix("curve.json").rstrip(".")
        found.append((f"{path.parent.name}{f' ({kind})' if kind else ''}", json.loads(path.read_text())))
    return found


def outcomes(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """(phase, outcome) of every stage that is over."""
    return [
        (path.parent.name.partition("-")[2], json.loads(path.read_text()))
        for path in sorted(folder.glob("[0-9]*/outcome.json"))
    ]


def smoothed(values: list[float]) -> list[float]:
    """The exponential mean, without its bias at the beginning."""
    mean, weight, found = 0.0, 0.0, []
    for value in values:
        mean, weight = SMOOTH * mean + (1 - SMOOTH) * value, SMOOTH * weight + 1 - SMOOTH
        found.append(mean / weight)
    return found


def draw(folder: Path, picture: Path) -> None:
    """A panel for each training loop, and one with the held-out loss after every stage."""
    trained, over = curves(folder), outcomes(folder)
    rows = -(-(len(trained) + 1) // COLUMNS)
    figure, axes = pyplot.subplots(
        rows, COLUMNS, figsize=(4.2 * COLUMNS, 3 * rows), layout="constrained", squeeze=False
    )
    panels = list(axes.flat)
    for panel, (title, curve) in zip(panels, trained, strict=False):
        steps, losses = [step[0] for step in curve["steps"]], [step[1] for step in curve["steps"]]
        panel.plot(steps, losses, color="#c8d3e0", linewidth=0.6)
        panel.plot(steps, smoothed(losses), color="#1f5fa8", linewidth=1.4, label="training")
        held = curve["held_out"]
        panel.plot([h[0] for h in held], [h[1] for h in held], "o-", color="#c8501e", markersize=3, label="held-out")
        panel.set(title=title, xlabel="step", ylabel="loss (nats per token)")
        panel.legend(frameon=False, fontsize=8)
    names = [name for name, _ in over]
    panel = panels[len(trained)]
    panel.plot(range(len(over)), [outcome["after"]["loss"] for _, outcome in over], "o", color="#8a8a8a", label="made")
    standing, kept = over[0][1]["before"]["loss"], []
    for _, outcome in over:
        standing = outcome["after"]["loss"] if outcome["verdict"]["outcome"] == "pass" else standing
        kept.append(standing)
    panel.step(range(len(over)), kept, where="mid", color="#1f5fa8", label="goes on")
    panel.set(title="held-out loss after each phase", ylabel="loss (nats per token)")
    panel.set_xticks(range(len(over)), names, rotation=35, ha="right", fontsize=8)
    panel.legend(frameon=False, fontsize=8)
    for spare in panels[len(trained) + 1 :]:
        spare.axis("off")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
