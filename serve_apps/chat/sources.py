"""What `VILLAGE_CHAT_MODEL` means: a registry name, a local folder, a Hugging Face id, or `openai:URL`."""

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from cluster.errors import Unavailable
from serve_apps.chat.engine import ChatEngine, Delta, Finish, Loaded, ModelRef, Sampling, Turn

ELSEWHERE = "openai:"


def is_registry_name(chat_model: str) -> bool:
    """Whether the registry has to be asked: neither a path, a hub id, nor a URL."""
    return not chat_model.startswith(ELSEWHERE) and "/" not in chat_model and not Path(chat_model).is_dir()


async def configured(chat_model: str) -> ModelRef | None:
    """The model that the setting itself names; None for a registry name. Downloads a hub id that is not here yet."""
    if is_registry_name(chat_model):
        return None
    model_id = "model_" + hashlib.sha256(chat_model.encode()).hexdigest()[:24]
    if chat_model.startswith(ELSEWHERE):
        url, _, name = chat_model.removeprefix(ELSEWHERE).partition("#")
        return ModelRef(model_id, name or "default", f"{ELSEWHERE}{url}{'#' + name if name else ''}")
    return await asyncio.to_thread(_local, chat_model, model_id)


def _local(chat_model: str, model_id: str) -> ModelRef:
    folder = Path(chat_model).expanduser().resolve()
    if folder.is_dir():
        return folder_model(folder, model_id, folder.name, "")
    folder = _download(chat_model)
    return folder_model(folder, model_id, chat_model, folder.name)  # the hub names a snapshot by its commit


def folder_model(folder: Path, model_id: str, name: str, digest: str) -> ModelRef:
    """A checkpoint's folder as a model; without a digest of its own, that of its files' names, sizes and times."""
    config = folder / "config.json"
    if not config.is_file():
        raise Unavailable(f"{folder} holds no checkpoint: there is no config.json", component="chat")
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.village")])
    stamp = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in [config, *weights]]
    return ModelRef(
        model_id,
        name,
        str(folder),
        digest or hashlib.sha256(repr(stamp).encode()).hexdigest(),
        int(json.loads(config.read_text()).get("max_position_embeddings") or 0),
        sum(size for _, size, _ in stamp),
    )


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        wanted = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
        return Path(snapshot_download(hub_id, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise Unavailable(f"the model {hub_id} could not be fetched: {error}", component="chat") from error


class Engines:
    """`ChatEngine` that sends each model where it runs: in our own vLLM, or at another server."""

    def __init__(self, here: ChatEngine, elsewhere: ChatEngine) -> None:
        self.here, self.elsewhere = here, elsewhere

    def generate(
        self, model: ModelRef, messages: Sequence[Turn], sampling: Sampling
    ) -> AsyncGenerator[Delta | Finish, None]:
        """See `ChatEngine`."""
        engine = self.elsewhere if model.path.startswith(ELSEWHERE) else self.here
        return engine.generate(model, messages, sampling)

    def loaded(self) -> list[Loaded]:
        """What is in this machine's memory."""
        return self.here.loaded()

    @property
    def progress(self) -> dict[str, float]:
        """Seconds that each model now being loaded has taken so far."""
        return self.here.progress

    async def close(self) -> None:
        """Close both."""
        await asyncio.gather(self.here.close(), self.elsewhere.close())
