"""A compressed model, expanded once into a cache folder that vLLM can load."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

from cluster.errors import InsufficientResources
from serve_apps.chat.engine import ModelRef
from train.causes import Failed
from train.manifest import sha256
from train.registry import expansion

STAMP = "expanded.json"  # the digests of the artifact and of the weights made of it
WEIGHTS = "model.safetensors"


def servable(model: ModelRef, home: Path) -> ModelRef:
    """The model as vLLM loads it: itself, or where it is compressed its expansion under the village's `home`.

    An expansion that is there and whole is taken as it is. Blocks. Raises `InsufficientResources` where the disk is
    full and `Failed` for a damaged artifact.
    """
    from train.compression.artifact import ARTIFACT, is_compressed  # torch, and not before a model is loaded

    if not is_compressed(Path(model.path)):
        return model
    artifact = sha256(Path(model.path) / ARTIFACT)
    folder = expansion(home, model.digest or artifact)
    if not _whole(folder, artifact):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            _expand(Path(model.path), folder, artifact)
        except Failed:
            _forget(folder)
            raise
        except OSError as error:
            _forget(folder)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise InsufficientResources(
                    f"the disk is full: the compressed model {model.name} cannot be expanded in {folder.parent}",
                    component="chat", model_id=model.model_id,
                ) from error  # fmt: skip
            if not _whole(folder, artifact):  # another replica may have been first
                raise
    return replace(model, path=str(folder), size_bytes=sum(file.stat().st_size for file in folder.iterdir()))


def _forget(folder: Path) -> None:
    """What `publish` left of an expansion that did not come about."""
    shutil.rmtree(folder.with_name(f".{folder.name}.{os.getpid()}"), ignore_errors=True)


def _expand(source: Path, folder: Path, artifact: str) -> None:
    from train.compression.artifact import expand
    from train.model.checkpoint import publish

    def fill(partial: Path) -> None:
        expand(source, partial)
        stamp = {"artifact": artifact, "weights": sha256(partial / WEIGHTS)}
        (partial / STAMP).write_text(json.dumps(stamp))

    publish(folder, fill)


def _whole(folder: Path, artifact: str) -> bool:
    try:
        stamp = json.loads((folder / STAMP).read_text())
        return stamp == {"artifact": artifact, "weights": sha256(folder / WEIGHTS)}
    except (OSError, ValueError):
        return False
