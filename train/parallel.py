"""A model that several processes share: data parallel copies (DDP), or shards (FSDP2, `fully_shard`)."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def sharded(model: nn.Module) -> bool:
    """Whether each process has only its part of the weights."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def shard(model: nn.Module, device: torch.device) -> Any:
    """A copy of the model in shards over all processes, block by block; the model itself stays whole."""
    parts = copy.deepcopy(model).to(device)
    for module in list(parts.modules()):
        if isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block)
    return fully_shard(parts)


def gather(parts: nn.Module, model: nn.Module) -> None:
    """The shards' weights back into the whole model. Every process calls it."""
    model.load_state_dict(get_model_state_dict(parts, options=WHOLE) or model.state_dict())


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights and optimizer state, whole, on the CPU; empty on other ranks than 0. Every process calls it."""
    weights = get_model_state_dict(model, options=WHOLE)
    return weights, get_optimizer_state_dict(model, optimizer, options=WHOLE)


def restore(
    model: nn.Module, optimizer: torch.optim.Optimizer, weights: dict[str, Any], moments: dict[str, Any]
) -> None:
    """What `state` gave, into shards of any number."""
    set_model_state_dict(model, weights, options=WHOLE)
    set_optimizer_state_dict(model, optimizer, moments, options=WHOLE)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be in shards. Every process calls it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor on the parameter's device, or its shard where the parameter is one."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
    return tensor.to(parameter.device)
