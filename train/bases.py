"""The folders of a run's base models: on this machine, or from a model hub."""

from pathlib import Path

from train.causes import Cause, Failed


def is_local(name: str) -> bool:
    """Whether a base model is named by a folder; everything else is a hub id."""
    return name.startswith(("/", ".", "~"))


def fetched(names: tuple[str, ...]) -> tuple[Path, ...]:
    """A folder for each. Raises `Failed` for one that does not exist or cannot be had from here."""
    return tuple(_folder(name) for name in names)


def _folder(name: str) -> Path:
    if is_local(name):
        folder = Path(name).expanduser()
        if not (folder / "config.json").is_file():
            raise Failed(f"no model in {name}", Cause.BASE_MODEL, base_model=name)
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model"]))
    except Exception as error:  # the hub's client raises its own, the HTTP library's and the socket's
        raise Failed(f"base model {name} cannot be had: {error}", Cause.BASE_MODEL, base_model=name) from error
