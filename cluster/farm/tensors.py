"""Safetensors files piece by piece: their layout, whether their numbers are numbers, and writing one.

The `safetensors` package checks the header; the tensors are read here, because its numpy face has no bfloat16 and loads
a tensor whole.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

PIECE = 1 << 20  # elements that are in memory at once
MOST_TENSORS = 100_000
LONGEST_HEADER = 32 << 20
FLOATS: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
WHOLE: dict[str, Any] = {
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32,
    "U16": np.uint16, "U8": np.uint8, "BOOL": np.uint8,
}  # fmt: skip
KINDS = FLOATS | WHOLE


class BadCheckpoint(ValueError):
    """A file that is no checkpoint, or not one that fits the others; says why."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in its file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    begin: int

    @property
    def size(self) -> int:
        """Elements."""
        size = 1
        for n in self.shape:
            size *= n
        return size

    @property
    def is_float(self) -> bool:
        """Whether it is averaged; what is not has to agree."""
        return self.kind in FLOATS


@dataclass(frozen=True)
class Checkpoint:
    """A file and its tensors, by name."""

    path: Path
    tensors: tuple[Tensor, ...]

    def layout(self) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        """What has to be the same in two files for an average of them."""
        return tuple((tensor.name, tensor.kind, tensor.shape) for tensor in self.tensors)


def opened(path: Path) -> Checkpoint:
    """The file's header, checked. Raises `BadCheckpoint`."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= LONGEST_HEADER:
                raise BadCheckpoint("no safetensors header")
            header = json.loads(file.read(length))
        with safe_open(path, framework="numpy"):  # offsets without gaps or overlaps, sizes that fit
            pass
    except (SafetensorError, ValueError, OSError, RecursionError, MemoryError) as error:
        raise BadCheckpoint(f"not a safetensors file: {str(error)[:200]}") from error
    header.pop("__metadata__", None)
    if not 0 < len(header) <= MOST_TENSORS:
        raise BadCheckpoint(f"a checkpoint has 1 to {MOST_TENSORS} tensors")
    tensors = []
    for name, about in sorted(header.items()):
        if about["dtype"] not in KINDS:
            raise BadCheckpoint(f"{name[:100]}: {about['dtype']} is averaged by nobody here")
        begin = 8 + length + about["data_offsets"][0]
        tensors.append(Tensor(name, about["dtype"], tuple(about["shape"]), begin))
    return Checkpoint(path, tuple(tensors))


def spans(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """(first, count) of the tensor's pieces."""
    return ((first, min(PIECE, tensor.size - first)) for first in range(0, tensor.size, PIECE))


def read(path: Path, tensor: Tensor, first: int, count: int) -> np.ndarray:
    """Elements as they are stored. The file is open for as long as that takes: a round may have a thousand of them."""
    kind = np.dtype(KINDS[tensor.kind]).newbyteorder("<")
    piece = np.fromfile(path, dtype=kind, count=count, offset=tensor.begin + first * kind.itemsize)
    if len(piece) != count:
        raise BadCheckpoint(f"{tensor.name[:100]}: the file ends too early")
    return piece


def pieces(path: Path, tensor: Tensor) -> Iterator[np.ndarray]:
    """The whole tensor, piece by piece."""
    return (read(path, tensor, first, count) for first, count in spans(tensor))


def as_float64(piece: np.ndarray, kind: str) -> np.ndarray:
    """Stored elements as numbers."""
    if kind == "BF16":  # the upper half of a float32
        return (piece.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return piece.astype(np.float64)


def stored(piece: np.ndarray, kind: str) -> np.ndarray:
    """Numbers as they are stored, rounded to the nearest, ties to even."""
    if kind != "BF16":
        with np.errstate(over="ignore"):
            return piece.astype(np.dtype(FLOATS[kind]).newbyteorder("<"))
    bits = piece.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def check_finite(checkpoint: Checkpoint) -> None:
    """Raises `BadCheckpoint` where a number is none: it would spread to everybody's average."""
    for tensor in checkpoint.tensors:
        if tensor.is_float:
            for piece in pieces(checkpoint.path, tensor):
                finite = (piece & 0x7F80) != 0x7F80 if tensor.kind == "BF16" else np.isfinite(piece)
                if not finite.all():
                    raise BadCheckpoint(f"{tensor.name[:100]}: holds what is not a finite number")


def fingerprint(checkpoint: Checkpoint) -> str:
    """Equal for files whose average means something: same layout, and whole numbers that agree."""
    digest = hashlib.sha256(repr(checkpoint.layout()).encode())
    for tensor in checkpoint.tensors:
        if not tensor.is_float:
            for piece in pieces(checkpoint.path, tensor):
                digest.update(piece.tobytes())
    return digest.hexdigest()


def difference(one: Checkpoint, other: Checkpoint) -> str:
    """In which tensor `other` differs from `one`, in words; empty where the layouts are the same."""
    a, b = ({tensor.name: tensor for tensor in checkpoint.tensors} for checkpoint in (one, other))
    for name in sorted(a.keys() | b.keys()):
        if name not in b:
            return f"{name[:100]} is missing"
        if name not in a:
            return f"{name[:100]} is not in the model"
        if (a[name].kind, a[name].shape) != (b[name].kind, b[name].shape):
            want, got = (f"{t.kind} {list(t.shape)}" for t in (a[name], b[name]))
            return f"{name[:100]} is {got}, and should be {want}"
    return ""


def write(path: Path, like: Checkpoint, content: Iterable[np.ndarray]) -> None:
    """A file of the layout of `like`; `content` are the elements of its tensors, in its order, one after the other."""
    header, at = {}, 0
    for tensor in like.tensors:
        end = at + tensor.size * np.dtype(KINDS[tensor.kind]).itemsize
        header[tensor.name] = {"dtype": tensor.kind, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin where any of them may be mapped
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in content:
            file.write(piece.tobytes())
