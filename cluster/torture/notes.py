"""What everybody who takes part notes down: one JSON line at once, so that a kill loses none. And torture's clock."""

import json
import os
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from cluster.clock import Clock, utc_now

CLOCK = "VILLAGE_TORTURE_CLOCK"


class Notes:
    """A file of one process. Notes of a process that is killed lack at most what it had not begun to write."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.{os.getpid()}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def note(self, what: str, **fields: Any) -> None:
        """One write for one line: nobody is killed in the middle of it."""
        os.write(self._file, (json.dumps({"what": what, "time": time.time(), **fields}) + "\n").encode())


def read(folder: Path) -> list[dict[str, Any]]:
    """Everything that was noted, by time."""
    found = [json.loads(line) for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]
    return sorted(found, key=lambda note: note["time"])


def shifted(environment: Mapping[str, str] = os.environ) -> Clock:
    """The clock of a part: right, or by so many seconds wrong after its first second, as the environment says."""
    seconds = float(environment.get(CLOCK) or 0)
    if not seconds:
        return utc_now
    begun = time.monotonic()

    def clock():
        stepped = time.monotonic() - begun > 1
        return utc_now() + timedelta(seconds=seconds if stepped else 0)

    return clock
