"""`village logs`: the log lines of every process of this machine's village, in the order of their times."""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from cluster import supervisor
from cluster.settings import Settings

FIRST = '{"part":'  # how a line of `cluster.logs` begins; Ray's own are between them


def files(settings: Settings) -> Iterator[Path]:
    """Where Ray keeps what its processes write: this session's folder."""
    folder = Path(supervisor.ray_folder(settings)) / "session_latest" / "logs"
    for pattern in ("worker-*.err", "job-driver-*.log"):
        yield from sorted(folder.glob(pattern))


def lines(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Our lines of these files; one that a kill cut off is left out."""
    for path in paths:
        with path.open(errors="replace") as file:
            for line in file:
                if line.startswith(FIRST):
                    try:
                        yield json.loads(line)
                    except ValueError:
                        continue


def wanted(line: dict[str, Any], word: str, part: str, level: str) -> bool:
    """Whether a line is of this part and level, and has `word` as the value of one of its fields. Pure."""
    good = part in ("", line.get("part")) and level in ("", line.get("level"))
    return good and (not word or any(word == value for value in line.values()))


def show(settings: Settings, told: argparse.Namespace) -> int:
    """Show log lines of every process here, as JSON: of one request, trace or principal, of one part, of one level."""
    found = [line for line in lines(files(settings)) if wanted(line, told.word, told.part, told.level)]
    for line in sorted(found, key=lambda line: line.get("timestamp", ""))[-told.last :]:
        print(json.dumps(line))
    return 0 if found else 1


def grammar(verbs: Any, verb: Callable[..., argparse.ArgumentParser]) -> None:
    """The words of `village logs`."""
    reading = verb("logs", show, verbs)
    reading.add_argument("word", nargs="?", default="", help="a request_id, trace_id, principal_id, ...")
    reading.add_argument("--part", default="", help="gateway, chat, knowledge, forge, router, ledger, stream, training")
    reading.add_argument("--level", default="", choices=["", "info", "warning", "error", "critical"])
    reading.add_argument("--last", type=int, default=200, metavar="N", help="this many lines, 200 unless told")
