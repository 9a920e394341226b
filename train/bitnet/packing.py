"""Ternary weights as they are stored: five trits to a byte (3^5 = 243 of 256), 1.6 bits a weight and a scale a matrix.

log2 3 = 1.585 bits is the least that equally frequent trits take.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from train.bitnet.linear import latents, scale_of, trits
from train.manifest import write_durably

A_BYTE = 5  # trits
PLACES = 3 ** torch.arange(A_BYTE)  # 1, 3, 9, 27, 81
TABLE = (torch.arange(3**A_BYTE)[:, None] // PLACES % 3 - 1).to(torch.int8)  # (243, 5): the trits of each byte
PACKED, SCALE, SHAPES = ".trits", ".scale", "shapes"


def pack(values: Tensor) -> Tensor:
    """Trits -1, 0, 1 of any shape, n of them -> (ceil(n / 5),) uint8. Raises `ValueError` for other values."""
    flat = values.flatten().to(torch.int16) + 1
    if len(flat) and not 0 <= int(flat.min()) <= int(flat.max()) <= 2:
        raise ValueError("a trit is -1, 0 or 1")
    filled = nn.functional.pad(flat, (0, -len(flat) % A_BYTE), value=1)
    return (filled.view(-1, A_BYTE) * PLACES.to(filled)).sum(-1).to(torch.uint8)


def unpack(packed: Tensor, count: int) -> Tensor:
    """(ceil(count / 5),) uint8 -> (count,) int8. Raises `ValueError` for bytes that `pack` does not write."""
    if len(packed) != -(-count // A_BYTE) or (len(packed) and int(packed.max()) >= len(TABLE)):
        raise ValueError(f"these are not {count} packed trits")
    return TABLE.to(packed.device)[packed.int()].flatten()[:count]


def write_packed(model: nn.Module, path: Path) -> None:
    """The weights that the model multiplies by: ternary ones packed, all others as they are, a tied one once."""
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    seen: set[int] = set()
    hidden = latents(model)
    for name, tensor in model.state_dict().items():
        if name in hidden:
            scale = scale_of(hidden[name])
            tensors[name + PACKED] = pack(trits(hidden[name], scale)).cpu()
            tensors[name + SCALE] = scale.bfloat16().cpu()  # it is a bfloat16 number
            shapes[name] = list(tensor.shape)
        elif tensor.data_ptr() not in seen:
            tensors[name] = tensor.detach().cpu().contiguous()
            seen.add(tensor.data_ptr())
    whole = save(tensors, metadata={SHAPES: json.dumps(shapes)})
    write_durably(path, lambda file: file.write(whole))


def read_packed(path: Path) -> dict[str, Tensor]:
    """What `write_packed` wrote, by name: bit for bit the float32 weights that the model's folder has."""
    with safe_open(path, "pt") as file:
        shapes: dict[str, list[int]] = json.loads(file.metadata()[SHAPES])
        read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    for name, shape in shapes.items():
        values = unpack(read.pop(name + PACKED), torch.Size(shape).numel())
        read[name] = values.view(shape) * read.pop(name + SCALE).float()
    return read


def ternary_bytes(path: Path) -> int:
    """How much of the file is packed trits and their scales."""
    with safe_open(path, "pt") as file:
        own = (file.get_tensor(name) for name in file.keys() if name.endswith((PACKED, SCALE)))  # noqa: SIM118
        return sum(tensor.nbytes for tensor in own)
