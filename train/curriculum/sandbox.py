"""Executes model-written programs for real, in a process of their own that stays warm and is replaced when it dies.

What stops a program: the language it is written in (`language.py`: nothing to name a file, a module or an attribute
with), 1 s of CPU and 256 MiB of address space, a wall deadline after which it is killed, an empty environment, and no
descriptor but its two pipes. Should the language be escaped, the kernel's filter of system calls leaves no file, socket
or process to reach, where the kernel has one (Linux on x86-64 and aarch64; `walls` says). What is not prevented:
programs run under the same user, share the core's caches with others, and one program may leave memory behind in the
process for the next until it is replaced.
"""

import json
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from train.curriculum.language import MOST_CHARACTERS

ROOT = Path(__file__).resolve().parents[2]
START = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from train.curriculum import child; child.begin()"
DEADLINE = 10.0  # seconds that a program may take on the clock: its second of CPU may be shared
STARTING = 30.0  # seconds that the process may take to be there
MOST_BYTES = 200_000  # of a reply
TOO_LONG = "took too long"


class Ran(NamedTuple):
    """What a program came to: its value as Python writes it, or why there is none."""

    value: str | None = None
    refused: str | None = None  # it is not of the language
    raised: str | None = None  # it ran into an error
    killed: str | None = None  # it took too long, or its process died


class Sandbox:
    """Runs one program at a time; close it, or use it in a `with`."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.walls: dict[str, bool] = {}  # which of the walls that need the kernel's leave stand
        self.started = 0  # processes so far

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, program: str, deadline: float = DEADLINE) -> Ran:
        """Execute it. Raises `OSError` where no process can be had."""
        if len(program) > MOST_CHARACTERS:
            return Ran(refused=f"more than {MOST_CHARACTERS} characters")
        for _ in range(2):  # a process may also die of something else, in between
            process = self._ready()
            try:
                _write(process, json.dumps(program).encode() + b"\n")
                reply = _read(process, deadline)
                return Ran(**{told: reply[told] for told in Ran._fields if told in reply})
            except TimeoutError:
                self.close()
                return Ran(killed=TOO_LONG)
            except (EOFError, BrokenPipeError):
                self.close()
                if process.returncode == -signal.SIGPROF:
                    return Ran(killed=TOO_LONG)
        return Ran(killed="its process died")

    def close(self) -> None:
        """Kill the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _ready(self) -> subprocess.Popen[bytes]:
        if self.process is not None and self.process.poll() is None:
            return self.process
        self.close()
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env={}, cwd="/", start_new_session=True, bufsize=0,
        )  # fmt: skip
        self.started += 1
        try:
            self.walls = _read(self.process, STARTING)
        except (TimeoutError, EOFError) as error:
            self.close()
            raise OSError("the sandbox's process does not start") from error
        return self.process


def _write(process: subprocess.Popen[bytes], line: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(line)


def _read(process: subprocess.Popen[bytes], deadline: float) -> dict:
    """One line of JSON. Raises `TimeoutError`, or `EOFError` where the process ends or says too much or nonsense."""
    assert process.stdout is not None
    read, end, ready = bytearray(), time.monotonic() + deadline, select.poll()
    ready.register(process.stdout, select.POLLIN)
    while not read.endswith(b"\n"):
        if not ready.poll(max(0.0, end - time.monotonic()) * 1000):
            raise TimeoutError
        piece = process.stdout.read(65_536)
        if not piece or len(read) > MOST_BYTES:
            raise EOFError
        read += piece
    try:
        return dict(json.loads(read))
    except (TypeError, ValueError) as error:
        raise EOFError from error
