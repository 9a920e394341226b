"""`village torture`: break a village of its own on purpose, and look whether it kept what it promises."""

import argparse
from collections.abc import Callable
from pathlib import Path

from cluster.cli.client import Refused
from cluster.settings import Settings
from cluster.torture.plan import Size

DEFAULT = Size()


def run(settings: Settings, told: argparse.Namespace) -> int:
    """Torture a village of its own, in a folder of its own: random load, kills, stops, wrong clocks, agents that lie.
    The same seed has the same plan. Exit status 1 if a promise was broken; the history is kept then.
    """
    from cluster.torture import command  # here, for every other command would pay for it

    if settings.profile == "production":
        raise Refused("not on a machine with VILLAGE_PROFILE=production: it takes all cores, and kills what it starts")
    if told.check:
        return command.look(Path(told.check))
    return command.seeds(told.seed, told.seeds, Size(told.seconds, told.tasks, told.pause), told.home)


def grammar(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """The grammar of this command."""
    made = verb("torture", run)
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--seeds", type=int, default=1, help="so many, from --seed on")
    made.add_argument("--seconds", type=float, default=DEFAULT.seconds, help="how long there are faults")
    made.add_argument("--tasks", type=int, default=DEFAULT.tasks)
    made.add_argument("--pause", type=float, default=DEFAULT.pause_seconds, help="longest stop of a process, seconds")
    made.add_argument("--home", default="", help="a folder for everything; a temporary one otherwise")
    made.add_argument("--check", metavar="FILE", default="", help="only look at a history that was kept")
