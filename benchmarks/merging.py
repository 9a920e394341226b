"""Merges per minute: ours beside mergekit's on the same folders, in one process, in alternating rounds.

Both read three checkpoints from the disk and write a fourth; ours also merges with the parents in memory, which is what
a search does. TIES and task vectors start from the first of four models. Nothing is evaluated.

python -m benchmarks.merging        # figures -> benchmarks/results/merging.json
"""

import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

RESULTS = Path(__file__).parent / "results" / "merging.json"
SHAPES = ("llama-1m", "llama-25m")
OPERATORS = ("linear", "slerp", "ties")
ROUNDS = 7
WEIGHTS = (0.5, 0.3, 0.2)
DENSITY = 0.5
T = 0.4
ROUNDING = 1e-6
GOAL = 1.0  # merges per minute, disk to disk, of mergekit's


def models(folder: Path, architecture: str) -> list[Path]:
    """A base and three models near it, with random weights and one tokenizer."""
    import torch

    from train.model.checkpoint import save_llama
    from train.model.llama import Llama
    from train.model.shape import choose
    from train.model.tokenizer import Tokenizer

    tokenizer = Tokenizer.train([str(number) * 3 for number in range(3000)], 2048)
    shape = choose(architecture, 0, tokenizer.vocab_size, 512)
    torch.manual_seed(0)
    base, made = Llama(shape).state_dict(), []
    for number in range(4):
        model = Llama(shape)
        moved = {name: x + 0.01 * bool(number) * torch.randn_like(x) for name, x in base.items()}
        model.load_state_dict(moved | {"lm_head.weight": moved["model.embed_tokens.weight"]})
        made.append(folder / f"{architecture}-{number}")
        made[-1].mkdir(parents=True)
        save_llama(model, shape, tokenizer, made[-1])
    return made


def mergekits(operator: str, folders: list[Path], out: Path) -> None:
    """From disk to disk, as a library. What it writes beside weights and configuration is left out."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    base, *parents = map(str, folders)
    configuration: dict[str, Any] = {"merge_method": operator, "dtype": "float32"}
    if operator == "slerp":
        both = [{"model": parent} for parent in parents[:2]]
        configuration |= {"base_model": parents[0], "models": both, "parameters": {"t": T}}
    else:
        each = zip(parents, WEIGHTS, strict=True)
        more = {"density": DENSITY} if operator == "ties" else {}
        configuration["models"] = [{"model": p, "parameters": {"weight": w} | more} for p, w in each]
        configuration |= {"base_model": base} if operator == "ties" else {}
    options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False, device="cpu")
    run_merge(MergeConfiguration.model_validate(configuration), str(out), options)


def ours(operator: str, folders: list[Path], out: Path) -> None:
    """From disk to disk: the models through `load`, the merge through `save`, with tokenizer and configuration."""
    from train.evomerge.merging import merged

    out.mkdir()
    count = 2 if operator == "slerp" else 3
    merged(folders[1 : 1 + count], recipe(operator), folders[0] if operator == "ties" else None).save(out)


def recipe(operator: str) -> dict[str, Any]:
    """What mergekit is asked for, as a search says it."""
    if operator == "slerp":
        return {"operator": operator, "parents": [0, 1], "t": [T, T]}
    more = {"density": DENSITY, "scale": 1.0} if operator == "ties" else {}
    return {"operator": operator, "weights": [WEIGHTS, WEIGHTS]} | more


def in_memory(folders: list[Path]) -> Callable[[str], None]:
    """Merging as each trial of a search does: the parents are held, the result fills a model that is there."""
    import copy

    from train.evomerge.merging import family, filled, merge

    learner, found = family(folders)
    scratch = copy.deepcopy(learner)
    base, *parents = [parent.weights for parent in found]
    return lambda operator: filled(scratch, merge(recipe(operator), parents, base)) and None


def alike(one: Path, other: Path) -> tuple[int, float]:
    """How many weights of the two folders differ by more than rounding, and the largest difference of the others.

    TIES may differ where several entries lie exactly at the threshold: ours keeps them all, mergekit some.
    """
    from safetensors.torch import load_file

    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert a.keys() == b.keys()
    gaps = [(a[name] - b[name]).abs() for name in a]
    return sum(int((gap > ROUNDING).sum()) for gap in gaps), max(float(gap[gap <= ROUNDING].max()) for gap in gaps)


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds, and CPU seconds: the latter hardly see what else the machine does."""
    begun, cpu = perf_counter(), process_time()
    work()
    return perf_counter() - begun, process_time() - cpu


def rounds(architecture: str, operator: str, folders: list[Path], here: Path) -> dict[str, Any]:
    """One operator on one size of model; the first round warms up and checks that both made the same."""
    keeping = in_memory(folders)
    found: dict[str, list[tuple[float, float]]] = {"mergekit": [], "ours": [], "ours, in memory": []}
    differing, rounding = 0, 0.0
    outs = {name: here / name for name in ("mergekit", "ours")}
    for number in range(ROUNDS + 1):
        took = {
            "mergekit": timed(lambda: mergekits(operator, folders, outs["mergekit"])),
            "ours": timed(lambda: ours(operator, folders, outs["ours"])),
            "ours, in memory": timed(lambda: keeping(operator)),
        }
        if number:
            for name, pair in took.items():
                found[name].append(pair)
        else:
            differing, rounding = alike(outs["mergekit"], outs["ours"])
        for out in outs.values():
            shutil.rmtree(out)
    same = {"weights that differ": differing, "rounding": rounding}
    return {"model": architecture, "operator": operator} | same | summed(found)


def summed(found: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Merges per minute (lowest, median, highest), and the ratios of each round's neighbours."""
    whole: dict[str, Any] = {}
    for unit, which in (("minute", 0), ("CPU minute", 1)):
        rates = {name: [60 / max(pair[which], 1e-9) for pair in pairs] for name, pairs in found.items()}
        ratios = {name: [m / t for m, t in zip(r, rates["mergekit"], strict=True)] for name, r in rates.items()}
        whole[f"merges per {unit}"] = {name: spread(values) for name, values in rates.items()}
        whole[f"of mergekit's, per {unit}"] = {n: spread(v) for n, v in ratios.items() if n != "mergekit"}
    return whole


def spread(values: list[float]) -> list[float]:
    """Lowest, median, highest."""
    return [round(each, 2) for each in (min(values), statistics.median(values), max(values))]


def main() -> None:
    """Print a table and write `results/merging.json`."""
    import torch

    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory(prefix="village-bench-") as name:
        for architecture in SHAPES:
            folders = models(Path(name), architecture)
            for operator in OPERATORS:
                results.append(rounds(architecture, operator, folders, Path(name)))
                show(results[-1])
    whole = {"goal": GOAL, "rounds": ROUNDS, "threads": 1, "load": os.getloadavg(), "results": results}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(whole, indent=1) + "\n")
    print(f"goal: disk to disk a median of at least {GOAL} times mergekit's; results in {RESULTS}")


def show(result: dict[str, Any]) -> None:
    """One operator's lines."""
    differing, rounding = result["weights that differ"], result["rounding"]
    print(f"\n{result['model']} {result['operator']}: {differing} weights differ, the others by {rounding:.1e} at most")
    for unit in ("minute", "CPU minute"):
        print(f"{f'merges per {unit}':<28}{'min':>10}{'median':>10}{'max':>10}")
        for name, values in result[f"merges per {unit}"].items():
            print(f"{name:<28}" + "".join(f"{value:>10.0f}" for value in values))
        for name, values in result[f"of mergekit's, per {unit}"].items():
            print(f"{name + ' / mergekit':<28}" + "".join(f"{value:>10.2f}" for value in values))


if __name__ == "__main__":
    main()
