"""`python -m train.farm --url ...`: what `village worker` starts."""

import argparse
import asyncio
import json
import math
import os
import signal
import sys
from pathlib import Path

import torch
from yarl import URL

from cluster.cli.worker import PASSWORD, options
from cluster.clock import iso, utc_now
from cluster.errors import Invalid, VillageError
from cluster.settings import Settings
from train.farm.identity import Credential, Folder, client_id
from train.farm.protocol import Session
from train.farm.transfer import Gateway
from train.farm.worker import Options, Worker


def say(text: str) -> None:
    """A line for the operator. What a farm sent is in it as a literal, so it cannot steer a terminal."""
    print(f"{iso(utc_now())} {text}", flush=True)


def credential(settings: Settings, username: str) -> Credential:
    """What the operator gave, else the admin of this home, as the other commands have it. Raises `Invalid`."""
    key, token, password = (os.environ.get(name, "") for name in ("VILLAGE_API_KEY", "VILLAGE_TOKEN", PASSWORD))
    if username:
        return Credential(username=username, password=password)
    if key or token:
        return Credential(token=token, api_key=key)
    if settings.admin_password:
        return Credential(username=settings.admin_username, password=settings.admin_password)
    try:
        kept = json.loads((settings.home / "admin.json").read_text())
        return Credential(username=kept["username"], password=kept["password"])
    except (OSError, ValueError, KeyError) as error:
        raise Invalid("no credential: give --api-key, --token or --username") from error


def datasets(given: list[str]) -> dict[str, Path]:
    """`NAME=PATH` each. Raises `Invalid`."""
    found: dict[str, Path] = {}
    for each in given:
        name, _, path = each.partition("=")
        if not name or not path or not Path(path).expanduser().exists():
            raise Invalid(f"--data {each}: is NAME=PATH, and the path has to exist")
        found[name] = Path(path).expanduser().resolve()
    return found


def farm_url(gateway: str) -> str:
    """The farm's WebSocket on the gateway itself."""
    url = URL(gateway)
    return str(url.with_scheme({"http": "ws", "https": "wss"}.get(url.scheme, url.scheme)) / "farm/ws")


def check_url(url: str, schemes: tuple[str, ...]) -> str:
    """The URL; says so where a credential would travel in the clear. Raises `Invalid`."""
    parts = URL(url)
    if parts.scheme not in schemes or not parts.host:
        raise Invalid(f"{url!r} is not a URL with {' or '.join(schemes)}")
    if parts.scheme == schemes[0] and parts.host not in ("127.0.0.1", "localhost", "::1"):
        say(f"warning: {parts.scheme}:// sends the credential in the clear to {parts.host}; use {schemes[1]}://")
    return url.rstrip("/")


async def work(told: argparse.Namespace, settings: Settings) -> int:
    """Exit status 0; with `--once`, 1 unless the task was completed and taken."""
    url = check_url(told.url or settings.url, ("http", "https"))
    farm = check_url(told.farm_url or farm_url(url), ("ws", "wss"))
    device = told.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise Invalid("there is no GPU that torch can use; --device cpu works without one")
    chosen = Options(
        farm, device, told.once, told.max_memory_mb or math.inf, datasets(told.data), told.checkpoint_seconds
    )
    name = client_id(settings.home, told.client_id)
    folder = Folder(settings.home, name)
    folder.lock()
    gateway = Gateway(url, credential(settings, told.username), name, say)
    worker = Worker(chosen, Session(name, lambda: iso(utc_now())), gateway, folder, say)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, worker.leave)
    try:
        await worker.run()
    finally:
        await gateway.close()
    return 0 if worker.succeeded or not told.once else 1


def main() -> int:
    """Parse and work; an error is one line and exit status 1."""
    told = options(argparse.ArgumentParser(prog="python -m train.farm")).parse_args()
    if told.threads > 0:
        torch.set_num_threads(told.threads)
    try:
        return asyncio.run(work(told, Settings()))
    except VillageError as error:
        print(f"village: {error.message}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
