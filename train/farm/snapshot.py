"""The state of a training in one safetensors file: tensors as tensors, everything else as JSON in its header.

Reading one runs no code, whoever wrote it: there is no pickle in it.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from cluster.errors import Invalid

KEY = "state"


def dump(state: Any) -> bytes:
    """Nested dicts, lists and tuples of tensors, numbers, strings, booleans and None."""
    tensors: dict[str, torch.Tensor] = {}
    names: dict[tuple[Any, ...], str] = {}  # tied tensors are written once

    def encoded(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            place = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else (len(names),)
            if place not in names:
                names[place] = f"t{len(names)}"
                tensors[names[place]] = value.detach().cpu().contiguous()
            return {"tensor": names[place]}
        if isinstance(value, dict):
            return {"dict": [[key, encoded(inner)] for key, inner in value.items()]}
        if isinstance(value, list | tuple):
            return {"tuple" if isinstance(value, tuple) else "list": [encoded(inner) for inner in value]}
        return value

    told = json.dumps(encoded(state))
    return save(tensors, {KEY: told})


def load(path: Path) -> Any:
    """What `dump` was given; the tensors on the CPU. Raises `Invalid`."""
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return _decoded(told, tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Invalid(f"not a snapshot: {type(error).__name__}") from error


def _decoded(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {key: _decoded(each, tensors) for key, each in inner}
    made = [_decoded(each, tensors) for each in inner]
    return tuple(made) if kind == "tuple" else made
