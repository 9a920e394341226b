"""`weights.village`: a model's tensors, each as its codec wrote it, in one file.

Layout: magic (8 bytes), version and length of the index (two little-endian uint32), SHA-256 of the index (32 bytes),
the index (JSON, deflated), and the tensors' bytes in the order of the index, each of which has a SHA-256 there.
"""

import errno
import hashlib
import json
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from train.causes import Cause, Failed
from train.compression.codecs import Encoded, decode

ARTIFACT = "weights.village"
MAGIC, VERSION = b"VILLAGEW", 1
HEAD = struct.Struct("<8sII32s")


@dataclass(frozen=True)
class Entry:
    """One tensor: decoded it has this shape and this torch type."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    encoded: Encoded

    @property
    def tensor(self) -> Tensor:
        """Decoded, on the CPU: the same bits on every machine. Raises `Failed` for bytes that no codec wrote."""
        try:
            return decode(self.encoded, self.shape).to(getattr(torch, self.dtype)).contiguous()
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, zlib.error) as error:
            raise Failed(f"the tensor {self.name} of the artifact is damaged: {error}", Cause.DAMAGED) from error


def write(file: BinaryIO, entries: Sequence[Entry], notes: dict[str, Any] | None = None) -> None:
    """`notes` are JSON that `read_notes` gives back."""
    rows = [
        [e.name, e.shape, e.dtype, e.encoded.codec, e.encoded.params, len(e.encoded.data), _digest(e.encoded.data)]
        for e in entries
    ]
    index = zlib.compress(json.dumps({"tensors": rows, "notes": notes or {}}).encode(), 9)
    file.write(HEAD.pack(MAGIC, VERSION, len(index), hashlib.sha256(index).digest()) + index)
    for entry in entries:
        file.write(entry.encoded.data)


def read(path: Path) -> list[Entry]:
    """The tensors, still encoded, each checked. Raises `Failed` for a file that is damaged or cut short."""
    with path.open("rb") as file:
        rows, found = _index(file, path)["tensors"], []
        for name, shape, dtype, codec, params, size, digest in rows:
            data = file.read(size)
            if len(data) != size or _digest(data) != digest:
                raise Failed(f"{path.name} is damaged at the tensor {name}", Cause.DAMAGED)
            found.append(Entry(name, tuple(shape), dtype, Encoded(codec, params, data)))
        if file.read(1):
            raise Failed(f"{path.name} is longer than it should be", Cause.DAMAGED)
    return found


def read_notes(path: Path) -> dict[str, Any]:
    """What `write` was given beside the tensors. Raises `Failed`."""
    with path.open("rb") as file:
        return _index(file, path)["notes"]


def tensors(folder: Path) -> dict[str, Tensor]:
    """The decoded tensors of a compressed model folder, by name."""
    return {entry.name: entry.tensor for entry in read(folder / ARTIFACT)}


def is_compressed(folder: Path) -> bool:
    """Whether the model folder has its weights in an artifact."""
    return (folder / ARTIFACT).is_file()


def expand(folder: Path, target: Path) -> None:
    """Fill the folder `target` with the model as transformers and vLLM load it: `model.safetensors` and all else.

    The weights have the types that they had before compression. Raises `OSError` where the disk is full.
    """
    for path in filter(Path.is_file, folder.iterdir()):
        if path.name != ARTIFACT:
            shutil.copyfile(path, target / path.name)
    try:
        save_file(tensors(folder), target / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # the library's own, for whatever the system said
        full = "No space left" in str(error) or "quota" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error


@contextmanager
def expanded(folder: Path) -> Iterator[Path]:
    """The folder itself where it is not compressed, else one with the model expanded, which goes with the context."""
    if not is_compressed(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as kept:
        expand(folder, Path(kept))
        yield Path(kept)


def _index(file: BinaryIO, path: Path) -> dict[str, Any]:
    head = file.read(HEAD.size)
    if len(head) < HEAD.size or head[: len(MAGIC)] != MAGIC:
        raise Failed(f"{path.name} is no artifact of compressed weights", Cause.DAMAGED)
    _, version, size, digest = HEAD.unpack(head)
    if version != VERSION:
        raise Failed(f"{path.name} has version {version}; this one reads {VERSION}", Cause.BASE_MODEL)
    index = file.read(min(size, os.fstat(file.fileno()).st_size))
    if len(index) != size or hashlib.sha256(index).digest() != digest:
        raise Failed(f"the index of {path.name} is damaged", Cause.DAMAGED)
    return json.loads(zlib.decompress(index))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
