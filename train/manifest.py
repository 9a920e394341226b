"""Checkpoints that survive a kill: `step-N.pt`, then `step-N.json` that vouches for it, each renamed into place.

A checkpoint exists once its manifest does and the file still has the size and SHA-256 that the manifest says. Ray's own
record of checkpoints is not used: it can be one behind after a crash.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, ValidationError

KEPT = 2  # the newest may turn out damaged


class Manifest(BaseModel):
    """What a checkpoint is: its step, its file, and what the file must look like."""

    model_config = ConfigDict(frozen=True)

    step: int
    file: str
    size_bytes: int
    sha256: str


def write_durably(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Afterwards the file is there as a whole, on the disk; before that it is not there, or is as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in the folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Checkpoints:
    """The checkpoints of one run, in one folder."""

    def __init__(self, folder: Path, suffix: str = ".pt") -> None:
        self.folder, self.suffix = folder, suffix

    def save(self, step: int, write: Callable[[BinaryIO], Any]) -> Manifest:
        """Write the state, then its manifest; forget all but the newest two. Durable when it returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08}{self.suffix}"
        write_durably(path, write)
        manifest = Manifest(step=step, file=path.name, size_bytes=path.stat().st_size, sha256=sha256(path))
        write_durably(path.with_suffix(".json"), lambda file: file.write(manifest.model_dump_json().encode()))
        for old in sorted(self.folder.glob("step-*.json"), reverse=True)[KEPT:]:
            old.unlink(missing_ok=True)
            old.with_suffix(self.suffix).unlink(missing_ok=True)
        return manifest

    def newest(self) -> tuple[Manifest, Path] | None:
        """The newest checkpoint that is whole, and its file; a damaged one is passed over."""
        return next(self._whole(), None)

    def _whole(self) -> Iterator[tuple[Manifest, Path]]:
        for path in sorted(self.folder.glob("step-*.json"), reverse=True):
            try:
                manifest = Manifest.model_validate_json(path.read_bytes())
                file = self.folder / manifest.file
                if file.stat().st_size == manifest.size_bytes and sha256(file) == manifest.sha256:
                    yield manifest, file
            except (OSError, ValidationError):
                continue


def folder_digest(folder: Path) -> str:
    """SHA-256 over the sorted file names and contents: two folders with one digest hold the same model."""
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        whole.update(json.dumps([path.name, path.stat().st_size, sha256(path)]).encode())
    return whole.hexdigest()
