"""Operating system processes of the village on this machine: start, restart, find and end them."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

GRACE_SECONDS = 8.0
MAX_PAUSE_SECONDS = 10.0
SWEEPS = 5
STEADY_SECONDS = 20.0  # a child that lived so long did not die of its start


class AlreadyUp(Exception):
    """Another village runs from this home; the message says where."""


@dataclass
class Child:
    """A process that shall always run."""

    name: str
    command: Callable[[], Sequence[str]]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause: float = 0.0
    restarts: int = 0
    after_start: list[Callable[[], None]] = field(default_factory=list)

    def start(self) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches us alone and we end it in order."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen(
                list(self.command()), env=dict(self.environment), stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.started = time.monotonic()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def revive(self) -> bool:
        """Start it again if it is dead and its pause is over; each early death doubles the pause."""
        if self.alive:
            return False
        now = time.monotonic()
        lived = now - self.started
        if lived < self.pause:
            return False
        self.pause = 0.25 if lived > STEADY_SECONDS else min(max(self.pause * 2, 0.25), MAX_PAUSE_SECONDS)
        self.restarts += 1
        self.start()
        return True

    def stop(self) -> None:
        """Ask, wait, insist."""
        if self.process is None or not self.alive:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def free_port(host: str, port: int) -> bool:
    """Whether we could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def lock(path: Path, about: Mapping[str, Any]) -> IO[str]:
    """Be the only village of this home until we die. Raises `AlreadyUp`."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = open(path, "a+")  # noqa: SIM115 - held for as long as the process lives
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        other = json.loads(handle.read() or "{}")
        handle.close()
        raise AlreadyUp(f"a village is up already: {other.get('url', '?')} (process {other.get('pid', '?')})") from None
    handle.truncate(0)
    handle.write(json.dumps({"pid": os.getpid(), **about}))
    handle.flush()
    return handle


def holder(path: Path) -> dict[str, Any] | None:
    """What the village that holds the lock said of itself; None when none does."""
    if not path.exists():
        return None
    with open(path, "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            return json.loads(handle.read() or "{}")
    return None


def belonging(home: Path) -> Iterator[psutil.Process]:
    """Every process of this user whose environment says that it works for the village of this home, ourselves not."""
    for process in psutil.process_iter():
        if process.pid in (os.getpid(), os.getppid()):
            continue
        try:
            environment = process.environ()
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if environment.get("VILLAGE_HOME") == str(home) and environment.get("VILLAGE_CHILD") == "1":
            yield process


def sweep(home: Path, spare: Sequence[int] = ()) -> int:
    """End whatever still works for the village of this home; how many processes that were.

    A process that dies may have started another just before: this looks again until it finds nothing.
    """
    ended = 0
    for _ in range(SWEEPS):
        found = [process for process in belonging(home) if process.pid not in spare]
        if not found:
            break
        ended += len(found)
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, stubborn = psutil.wait_procs(found, timeout=3)
        for process in stubborn:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(stubborn, timeout=5)
    return ended
