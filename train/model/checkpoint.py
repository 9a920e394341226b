"""A trained model as a Hugging Face folder: what transformers and vLLM load, and what a user downloads."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from train.bitnet.linear import effective, is_ternary, latents, ternary
from train.compression.artifact import is_compressed, tensors
from train.manifest import sync_folder
from train.model.llama import Llama
from train.model.shape import Shape, hf_config
from train.model.tokenizer import BEGIN, END, PAD, Tokenizer

# Safetensors of the latent weights of ternary layers. Not named *.safetensors: vLLM loads every such file it finds.
LATENTS = "latents.ternary"


def publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder that then appears under its name at once, durably. A folder that is there stays."""
    if folder.exists():
        return
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    for path in partial.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    sync_folder(partial)
    partial.rename(folder)
    sync_folder(folder.parent)


def save_llama(model: Llama, shape: Shape, tokenizer: Tokenizer, folder: Path) -> None:
    """Weights in float32, configuration and tokenizer, as `LlamaForCausalLM` has them.

    Of ternary layers the weights are what they multiply by; their latent weights go beside, for further training.
    """
    state = on_disk(model.state_dict() | effective(model))
    del state["lm_head.weight"]  # tied: it is the embedding
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    save_latents(model, folder)
    ids = tokenizer.ids
    tokens = {"bos_token_id": ids[BEGIN], "eos_token_id": ids[END], "pad_token_id": ids[PAD]}
    write_json(folder / "config.json", hf_config(shape, tokens))
    write_json(folder / "generation_config.json", {**tokens, "do_sample": True, "temperature": 0.2, "top_p": 0.9})
    tokenizer.save(folder, shape.context)


def load_llama(folder: Path) -> tuple[Llama, Shape]:
    """A model that `save_llama` wrote."""
    read = json.loads((folder / "config.json").read_text())
    shape = Shape(
        width=read["hidden_size"], layers=read["num_hidden_layers"], heads=read["num_attention_heads"],
        feed_forward=read["intermediate_size"], vocab_size=read["vocab_size"], context=read["max_position_embeddings"],
        rope_theta=read["rope_theta"], norm_eps=read["rms_norm_eps"],
    )  # fmt: skip
    model = Llama(shape)
    state = tensors(folder) if is_compressed(folder) else load_file(folder / "model.safetensors")
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    load_latents(model, folder)
    return model, shape


def save_latents(model: nn.Module, folder: Path) -> None:
    """The latent weights of a model's ternary layers, if it has any: the file says that they are ternary."""
    if is_ternary(model):
        save_file(on_disk(latents(model)), folder / LATENTS)


def load_latents(model: nn.Module, folder: Path) -> None:
    """Make the layers ternary again where the folder says that they are."""
    if (folder / LATENTS).exists():
        state: dict[str, torch.Tensor] = load_file(folder / LATENTS)
        ternary(model).load_state_dict(state, strict=False)


def on_disk(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as `save_file` takes them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def write_json(path: Path, value: Any) -> None:
    """Indented and with sorted keys, so that equal values are equal files."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
