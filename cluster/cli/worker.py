"""`village worker`: work for a farm. Only its grammar: what trains lies in a package that this one may not import."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from cluster.cli import users
from cluster.settings import Settings

SECRETS = {"api_key": "VILLAGE_API_KEY", "token": "VILLAGE_TOKEN"}
PASSWORD = "VILLAGE_PASSWORD"


def worker(settings: Settings, told: argparse.Namespace) -> int:
    """Train what an AI Farm assigns to this machine, until Ctrl-C."""
    environment = dict(os.environ)
    # In the environment, because every user of the machine sees a command line.
    environment |= {name: getattr(told, option) for option, name in SECRETS.items() if getattr(told, option)}
    if told.username:
        environment[PASSWORD] = os.environ.get(PASSWORD) or users.read_password()
    command = [sys.executable, "-m", "train.farm", "--url", told.url or settings.url, *arguments(told)]
    os.execve(sys.executable, command, environment)


def arguments(told: argparse.Namespace) -> list[str]:
    """The options that are not secret, as they were given."""
    found: list[str] = []
    for name, value in vars(told).items():
        if name in (*SECRETS, "url", "action") or value in (None, "", False, []):
            continue
        values = [] if value is True else value if isinstance(value, list) else [value]
        option = f"--{name.replace('_', '-')}"
        found += [f"{option}={each}" for each in values] or [option]
    return found


def options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """What the command and `python -m train.farm` take."""
    parser.add_argument("--url", default="", help="the village, as in http://127.0.0.1:8080")
    parser.add_argument("--farm-url", default="", help="its WebSocket; /farm/ws of the village where none is given")
    parser.add_argument("--username", default="", help="sign in with a password, which is read as in `user add`")
    parser.add_argument("--client-id", default="", help="one for this machine and home is made and kept otherwise")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=0, help="of torch on a CPU; 0: its own choice")
    parser.add_argument("--max-memory-mb", type=int, default=0, help="a task that takes more is ended; 0: no limit")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH", help="text that tasks may name")
    parser.add_argument("--checkpoint-seconds", type=float, default=10.0, help="how often the state is saved")
    parser.add_argument("--once", action="store_true", help="end after one task")
    return parser


def grammar(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """The grammar of this command."""
    made: Any = options(verb("worker", worker))
    made.add_argument("--api-key", default="", help="or VILLAGE_API_KEY")
    made.add_argument("--token", default="", help="or VILLAGE_TOKEN")
