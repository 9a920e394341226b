"""What final compression does: every tensor encoded many ways, one way chosen for each, one file of what was chosen.

Encodings are tried tensor by tensor (`tables`). The moves from a larger encoding to a smaller one, over all tensors in
the order of what they are expected to cost per byte saved, are then followed as far as the measured loss allows.
"""

import json
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from train.compression.allocation import after, furthest, path
from train.compression.artifact import ARTIFACT, expand, write
from train.compression.calibration import calibrated
from train.compression.candidates import candidates
from train.compression.tables import Model, Table, options, table
from train.data.packing import Batch
from train.data.prepared import texts
from train.data.sources import Document
from train.evaluate.perplexity import held_out_batches, held_out_loss
from train.loop import Progress
from train.model.checkpoint import LATENTS, publish, write_json
from train.model.generate import generate
from train.model.learner import Learner, load
from train.phases.phase import Work

if TYPE_CHECKING:
    from train.phases.final_compression import FinalCompression, FinalCompressionConfig

REPORT = "compression.json"
SAMPLED = 8192  # weights of a matrix that slow codecs are tried on
CONTEXT = 512  # tokens of a row of text at most
PROMPT = 16  # tokens that speed is measured after


def compress(phase: "FinalCompression", work: Work) -> dict[str, float]:
    """Leaves the compressed model in `work.output`; rank 0 does it all. Goes on from the tensors that are done."""
    if work.rank != 0:
        return {}
    config, plain, encodings = phase.config, work.folder / "plain", work.folder / "encodings"
    if not work.output.exists():
        assert work.base is not None
        publish(plain, partial(served, work.base))
        _make(config, work, plain, encodings)
    for done in (plain, encodings):
        shutil.rmtree(done, ignore_errors=True)
    totals = json.loads((work.output / REPORT).read_text())["totals"]
    return totals | timed(work, config)


def served(base: Path, folder: Path) -> None:
    """Write the model as it is served: weights as they multiply, without what only training needs."""
    load(base).save(folder)
    (folder / LATENTS).unlink(missing_ok=True)


def _make(config: "FinalCompressionConfig", work: Work, plain: Path, encodings: Path) -> None:
    begun = time.monotonic()
    learner = load(plain)
    learner.model.to(work.device).eval()
    model = _model(config, learner, texts(work.data).training, work.device)
    stored = stored_tensors(plain)
    wanted = list(candidates(config.codecs, config.seeds, config.group))
    tables: list[Table] = []
    for number, (name, weight) in enumerate(stored.items()):
        tables.append(
            table(
                encodings / f"{number:05}.village", name, weight, model, wanted, smallest=config.smallest,
                measured=config.measured, sampled=SAMPLED, seed=config.seed + number,
            )
        )  # fmt: skip
        seconds = time.monotonic() - begun
        work.report(Progress(step=number + 1, total_steps=len(stored) + 1, seconds=seconds))
    chosen, rise = choose(config, model, tables)
    work.note("encodings chosen", rise=round(rise, 4))
    base_bytes = sum(file.stat().st_size for file in plain.glob("*.safetensors"))
    entries = [each.entry(chosen[each.name]) for each in tables]

    def fill(folder: Path) -> None:
        for file in plain.iterdir():
            if not file.name.startswith("model") or file.suffix not in (".safetensors", ".json"):
                shutil.copyfile(file, folder / file.name)
        with (folder / ARTIFACT).open("wb") as file:
            write(file, entries)
        size, count = (folder / ARTIFACT).stat().st_size, sum(weight.numel() for weight in stored.values())
        codecs = [each.tried[chosen[each.name]].codec for each in tables]
        totals = {
            "compression_ratio": 1 - size / base_bytes, "compression_ratio_bf16": 1 - size / (2 * count),
            "bits_per_weight": 8 * size / count, "artifact_bytes": size, "base_bytes": base_bytes,
            "calibration_loss_before": model.losses[0](None), "calibration_rise": rise,
            **{f"tensors_{codec}": codecs.count(codec) for codec in sorted(set(codecs))},
        }  # fmt: skip
        write_json(folder / REPORT, {"totals": totals, "tensors": [row(each, chosen[each.name]) for each in tables]})

    publish(work.output, fill)
    work.report(Progress(step=len(stored) + 1, total_steps=len(stored) + 1, seconds=time.monotonic() - begun))


def _model(
    config: "FinalCompressionConfig", learner: Learner, documents: Sequence[Document], device: torch.device
) -> Model:
    """Hessians from every second document, losses from the others; thoughts and tool calls are a text of their own."""

    def rows(of: Sequence[Document], tokens: int) -> list[Batch]:
        return held_out_batches(learner, of, tokens, min(learner.context, CONTEXT))

    def loss(measuring: Sequence[Batch], batches: int | None) -> float:
        return held_out_loss(learner.model, measuring[:batches], "fp32", device)[0]

    seeing, measuring = rows(documents[::2], config.calibration_tokens), [rows(documents[1::2], config.measured_tokens)]
    if len(learner.replay) > 1:
        seeing += rows(learner.replay[::2], config.calibration_tokens // 4)
        measuring.append(rows(learner.replay[1::2], config.measured_tokens // 4))
    return Model(learner.model, calibrated(learner.model, seeing, device), [partial(loss, text) for text in measuring])


def choose(config: "FinalCompressionConfig", model: Model, tables: Sequence[Table]) -> tuple[dict[str, int], float]:
    """Every tensor's option, and the measured rise in loss on the calibration text with all of them.

    The smallest model whose loss rises by at most `tolerance_nats`, or the first of at most `target_bits` a weight.
    """
    of = {each.name: each for each in tables}
    moves = path(options(tables))
    names, count = list(of), sum(torch.Size(each.shape).numel() for each in tables)

    def weights(number: int) -> dict[str, Tensor]:
        return {name: of[name].entry(option).tensor for name, option in after(names, moves[:number]).items()}

    def too_large(number: int) -> bool:
        chosen = after(names, moves[:number])
        return 8 * sum(of[name].tried[option].size for name, option in chosen.items()) > config.target_bits * count

    if config.target_bits:
        number = furthest(len(moves), lambda moved: moved == 0 or too_large(moved - 1))
    else:
        number = furthest(len(moves), lambda moved: model.rise(weights(moved)) <= config.tolerance_nats)
    return after(names, moves[:number]), model.rise(weights(number))


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a plain model folder, by name, in the names' order."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return dict(sorted(found.items()))


def row(each: Table, option: int) -> dict[str, Any]:
    """What the report says of a tensor."""
    tried = each.tried[option]
    return {
        "name": each.name, "shape": list(each.shape), "codec": tried.codec, "params": tried.params,
        "bits_per_weight": 8 * tried.size / torch.Size(each.shape).numel(), "error": tried.error,
        "sensitivity": each.sensitivity,
    }  # fmt: skip


def timed(work: Work, config: "FinalCompressionConfig") -> dict[str, float]:
    """How long the artifact takes to expand and to load, and the loaded model for a token."""
    scratch = work.folder / "expanded"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    begun = time.perf_counter()
    expand(work.output, scratch)
    expanded = time.perf_counter()
    learner = load(work.output)
    loaded = time.perf_counter()
    shutil.rmtree(scratch)
    learner.model.to(work.device)
    prompt = learner.tokenizer.text("The village")[:PROMPT]
    generate(learner, [prompt], 2, stop=[])  # the first time is slower
    before = time.perf_counter()
    made = generate(learner, [prompt], min(config.timed_tokens, learner.context - len(prompt)), stop=[])
    spent = time.perf_counter() - before
    return {
        "expand_seconds": expanded - begun, "load_seconds": loaded - expanded,
        "inference_ms_per_token": 1000 * spent / len(made[0]),
    }  # fmt: skip
