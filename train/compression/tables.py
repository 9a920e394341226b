"""Every tensor's encodings, what they weigh and what they cost: made tensor by tensor, kept on disk as each is done."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from train.causes import Failed
from train.compression.allocation import Option, hull
from train.compression.artifact import Entry, read, read_notes, write
from train.compression.calibration import Place
from train.compression.candidates import Candidate, Tried, explored, plain
from train.compression.codecs import Encoded, encode
from train.manifest import write_durably

BAND = (0.01, 0.06)  # errors between which losses are measured: large enough to be seen, small enough to be linear
FEW = 1  # batches of text that a single tensor's rise is measured on
LEAST_COST = 0.05  # of the tensors' median: a rise that was too small to see is not taken for none


@dataclass(frozen=True)
class Table:
    """What there is to choose from for a tensor. Option 0 is the plain one."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    tried: tuple[Tried, ...]
    encodings: dict[int, Encoded]  # of the options worth having, by number
    rises: dict[int, float]  # of those measured: how much the loss rose with this tensor alone encoded so

    @property
    def sensitivity(self) -> float | None:
        """Nats per token that the loss rises by, for each unit of error; None where it was not measured."""
        errors = sum(self.tried[number].error for number in self.rises)
        return sum(self.rises.values()) / errors if errors else None

    def entry(self, option: int) -> Entry:
        """The tensor encoded that way."""
        return Entry(self.name, self.shape, self.dtype, self.encodings[option])


class Model:
    """The model that losses are measured on; its matrices come and go.

    Each of `losses` is one text's: `loss(batches)` as the model is now, nats per token, on so many batches of it, or on
    all with None.
    """

    def __init__(
        self, module: nn.Module, places: Mapping[str, Place], losses: Sequence[Callable[[int | None], float]]
    ) -> None:
        self.places, self.losses = places, losses
        self.parameters = dict(module.named_parameters())
        self.before: dict[int | None, list[float]] = {}

    def parameter(self, name: str) -> tuple[str, nn.Parameter] | None:
        """Of a tensor in the model's files; transformers models lie inside ours."""
        for known in (name, f"inner.{name}"):
            if known in self.parameters:
                return known, self.parameters[known]
        return None

    @torch.no_grad()
    def rise(self, weights: Mapping[str, Tensor], batches: int | None = None) -> float:
        """How much the loss is higher with these tensors in their places, on the text where it rises most."""
        if batches not in self.before:
            self.before[batches] = [loss(batches) for loss in self.losses]
        kept: list[tuple[nn.Parameter, Tensor]] = []
        for name, weight in weights.items():
            if (found := self.parameter(name)) is not None:
                kept.append((found[1], found[1].data))
                found[1].data = weight.to(found[1])
        try:
            return max(loss(batches) - was for loss, was in zip(self.losses, self.before[batches], strict=True))
        finally:
            for parameter, weight in kept:
                parameter.data = weight


def table(
    kept: Path, name: str, weight: Tensor, model: Model, wanted: Sequence[Candidate], *, smallest: int, measured: int,
    sampled: int, seed: int,
) -> Table:  # fmt: skip
    """The tensor's table, from the file `kept` where it is there and whole.

    Tensors other than matrices of linear layers and embeddings, and those of fewer than `smallest` numbers, have only
    their plain encoding.
    """
    try:
        return _read(kept)
    except (OSError, Failed):
        pass
    dtype, shape = str(weight.dtype).removeprefix("torch."), tuple(weight.shape)
    found = model.parameter(name)
    place = model.places.get(found[0]) if found else None
    if place is None or weight.dim() != 2 or weight.numel() < smallest:
        codec, params = plain(weight)
        encoded = encode(codec, weight, params)
        made = Table(name, shape, dtype, (Tried(codec, params, len(encoded.data), 0.0),), {0: encoded}, {})
    else:
        on_device = weight.to(place.parameter.device)
        tried, whole = explored(on_device, place.known, wanted, seed, sampled)
        chain = hull([Option(each.size, each.error) for each in tried])
        for number in chain:
            if number not in whole:
                codec, params = tried[number].codec, tried[number].params
                whole[number] = encode(codec, on_device, params, place.known, seed)
                tried[number] = tried[number]._replace(size=len(whole[number].data))
        encodings = {number: whole[number] for number in chain}
        made = Table(name, shape, dtype, tuple(tried), encodings, {})
        for number in _telling(chain, tried, measured):
            made.rises[number] = model.rise({name: made.entry(number).tensor}, FEW)
    write_durably(kept, partial(_write, made))
    return made


def options(tables: Sequence[Table]) -> dict[str, list[Option]]:
    """Every tensor's options with the rise in loss that each is expected to cost: sensitivity times error."""
    seen = [each.sensitivity for each in tables if each.sensitivity is not None]
    typical = median(seen) if seen and median(seen) > 0 else 1.0
    found: dict[str, list[Option]] = {}
    for each in tables:
        own = max(typical if each.sensitivity is None else each.sensitivity, LEAST_COST * typical)
        of_all = [Option(tried.size, own * tried.error) for tried in each.tried]
        # What has no encoding was not worth having: never smaller than the plain one.
        found[each.name] = [o if n in each.encodings else Option(of_all[0].size, o.cost) for n, o in enumerate(of_all)]
    return found


def _telling(chain: Sequence[int], tried: Sequence[Tried], count: int) -> list[int]:
    """The options whose losses are measured: those with errors nearest to some spread over `BAND`."""
    there = [number for number in chain if number and tried[number].error > 0]
    if not there:
        return []
    aims = np.geomspace(*BAND, max(count, 1))[:count]
    distance = {n: np.log(tried[n].error) for n in there}
    return sorted({min(there, key=lambda n: abs(distance[n] - np.log(aim))) for aim in aims})


def _write(made: Table, file: BinaryIO) -> None:
    notes = {
        "name": made.name, "shape": made.shape, "dtype": made.dtype, "tried": made.tried,
        "rises": list(made.rises.items()),
    }  # fmt: skip
    entries = [Entry(str(n), made.shape, made.dtype, encoded) for n, encoded in made.encodings.items()]
    write(file, entries, notes)


def _read(kept: Path) -> Table:
    notes = read_notes(kept)
    return Table(
        notes["name"], tuple(notes["shape"]), notes["dtype"], tuple(Tried(*each) for each in notes["tried"]),
        {int(entry.name): entry.encoded for entry in read(kept)}, {number: rise for number, rise in notes["rises"]},
    )  # fmt: skip
