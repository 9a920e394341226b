"""`village`: the command line."""

import argparse
import sys

from cluster import runtime
from cluster.processes import AlreadyUp
from cluster.runtime import CannotStart
from cluster.settings import Settings


def up(settings: Settings, _: argparse.Namespace) -> int:
    """Run the village here until Ctrl-C."""
    try:
        return runtime.Village(settings, lambda text: print(text, flush=True)).up()
    except AlreadyUp as error:
        print(error)
        return 0
    except CannotStart as error:
        print(f"village: {error}", file=sys.stderr)
        return 1


def down(settings: Settings, _: argparse.Namespace) -> int:
    """End the village of this home."""
    return runtime.end(settings, lambda text: print(text, flush=True))


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="village", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, action in {"up": up, "down": down}.items():
        command = commands.add_parser(name, help=action.__doc__)
        command.set_defaults(action=action)
    told = parser.parse_args()
    sys.exit(told.action(Settings(), told))
