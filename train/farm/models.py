"""The model of a task: unpacked from what the registry sent, or fresh; and the round's global weights.

What comes over the network is data: safetensors, and JSON whose every number is checked before it is believed.
"""

import json
import shutil
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cluster.errors import Invalid, VillageError
from train.model.checkpoint import load_llama
from train.model.llama import Llama
from train.model.shape import Shape, choose
from train.model.tokenizer import SPECIAL, Tokenizer

TIED = "lm_head.weight"  # is the embedding, and is not stored
MEGABYTE = 1 << 20
FILES = {  # of a model's archive that are taken, with the most that each may have; everything else is left in it
    "config.json": MEGABYTE,
    "tokenizer.json": 64 * MEGABYTE,
    "model.safetensors": 1 << 40,
}
MOST = {"width": 32_768, "layers": 512, "heads": 512, "feed_forward": 131_072, "vocab_size": 1 << 20, "context": 65_536}
FRESH_PARAMETERS, FRESH_CONTEXT = 1_500_000, 512  # of a model from nothing, as cognate's defaults


@dataclass
class Assets:
    """A model, its shape, and how it cuts text."""

    model: Llama
    shape: Shape
    tokenizer: Tokenizer


def unpack(archive: Path, folder: Path) -> None:
    """The known files of a model's tar, each under its own plain name, whatever it is called inside. Raises `Invalid`.

    Links, devices, sparse files and paths are not followed: names are compared, and contents copied.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if not member.isreg() or member.issparse() or name not in FILES or (folder / name).exists():
                    continue
                if member.size > FILES[name]:
                    raise Invalid(f"the model's {name} has {member.size} bytes, more than {FILES[name]}")
                source = tar.extractfile(member)
                assert source is not None
                with source, (folder / name).open("xb") as target:
                    shutil.copyfileobj(source, target, MEGABYTE)
    except (tarfile.TarError, OSError) as error:
        raise Invalid(f"the model's archive cannot be read: {type(error).__name__}") from error
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise Invalid(f"the model's archive has no {', '.join(missing)}")


def shape_of(folder: Path) -> Shape:
    """The shape that a model folder states, if it is one that this worker can train. Raises `Invalid`."""
    try:
        read: dict[str, Any] = json.loads((folder / "config.json").read_text())
        shape = Shape(
            width=int(read["hidden_size"]), layers=int(read["num_hidden_layers"]),
            heads=int(read["num_attention_heads"]), feed_forward=int(read["intermediate_size"]),
            vocab_size=int(read["vocab_size"]), context=int(read["max_position_embeddings"]),
            rope_theta=float(read["rope_theta"]), norm_eps=float(read["rms_norm_eps"]),
        )  # fmt: skip
        plain = (
            read["model_type"] == "llama" and read["tie_word_embeddings"] is True and not read.get("rope_scaling")
            and read.get("num_key_value_heads", shape.heads) == shape.heads and not read.get("attention_bias")
            and not read.get("mlp_bias") and read.get("hidden_act", "silu") == "silu"
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise Invalid("the model's config.json is not one of a Llama that this worker can train") from error
    if not plain:
        raise Invalid("this worker trains Llama models with tied embeddings and as many key heads as query heads")
    sizes = asdict(shape)
    wrong = [name for name, most in MOST.items() if not 1 <= sizes[name] <= most]
    if wrong or shape.width % shape.heads or shape.head_width % 2 or not 1 <= shape.rope_theta <= 1e9:
        raise Invalid(f"the model's shape is not possible: {', '.join(wrong) or 'heads or rotation'}")
    # A few lines of JSON must not make this machine allocate what nobody sent.
    if shape.parameters > (folder / "model.safetensors").stat().st_size:
        raise Invalid("the model's weights are smaller than its shape says")
    return shape


def fresh_shape(vocab_size: int) -> Shape:
    """Of a model from nothing, by the project's own table."""
    return choose("auto", FRESH_PARAMETERS, vocab_size, FRESH_CONTEXT)


def from_registry(folder: Path) -> Assets:
    """The model in an unpacked folder. Raises `Invalid`."""
    shape = shape_of(folder)
    try:
        cut = Tokenizer.load(folder)
        model, _ = load_llama(folder)
    # The tokenizers library raises bare Exceptions.
    except Exception as error:
        raise Invalid(f"the model's files do not fit each other: {type(error).__name__}") from error
    if set(cut.ids) != set(SPECIAL) or cut.vocab_size > shape.vocab_size:
        raise Invalid("the model's tokenizer is not of the village's kind, or larger than its vocabulary")
    finite(model.state_dict())
    return Assets(model, shape, cut)


def fresh(cut: Tokenizer, seed: int) -> Assets:
    """Weights that follow from the seed alone: on the CPU, so that every kind of machine has the same ones."""
    shape = fresh_shape(cut.vocab_size)
    torch.manual_seed(seed)
    return Assets(Llama(shape), shape, cut)


def save_weights(model: Llama, path: Path, about: dict[str, str]) -> None:
    """The weights in float32, under the names of a Hugging Face Llama."""
    state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in model.state_dict().items()}
    del state[TIED]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata={"format": "pt", **about})


def load_weights(model: Llama, path: Path) -> None:
    """Weights of exactly this model's names and shapes, all of them numbers. Raises `Invalid`."""
    try:
        state: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise Invalid(f"the global weights are not safetensors: {type(error).__name__}") from error
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items() if name != TIED}
    state.pop(TIED, None)
    if {name: tensor.shape for name, tensor in state.items()} != wanted:
        raise Invalid("the global weights are not of the task's model")
    finite(state)
    model.load_state_dict(state | {TIED: state["model.embed_tokens.weight"]})


def finite(state: dict[str, torch.Tensor]) -> None:
    """Raises `VillageError` for weights that are no numbers."""
    for tensor in state.values():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise VillageError("the weights hold what is no number")
