"""`village`: the command line. Everything but `up`, `down` and `status` speaks HTTP to a running village."""

from cluster.cli.main import main

__all__ = ["main"]
