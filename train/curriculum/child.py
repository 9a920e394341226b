"""The process that model-written programs run in: it shuts itself in, then executes one program a line.

Standard library only, started with `python -I -S`. Its walls, outermost last: the language (`language.py`), resource
limits, and where the kernel grants them an empty network namespace and a filter of system calls that leaves memory,
the pipes it has, a timer and exiting.
"""

import ctypes
import json
import platform
import resource
import signal
import sys
from typing import IO

from train.curriculum.expression import Refused
from train.curriculum.language import RAISED, execute

CPU_SECONDS = 1.0  # of one program
CPU_SECONDS_IN_ALL = 600  # of the process; its owner starts another
MEMORY_BYTES = 256 * 2**20
MOST_REPLY = 10_000  # characters of a value
NO_NEW_PRIVILEGES, SET_FILTER, FILTER = 38, 22, 2  # of prctl
NEW_NETWORK = 0x40000000  # of unshare
# Number of the machine in the filter, and the system calls that stay: read, write, close, mmap, mprotect, munmap, brk,
# mremap, madvise, rt_sigaction, rt_sigprocmask, rt_sigreturn, setitimer, futex, clock_gettime, getrandom, exit,
# exit_group.
MACHINES = {
    "x86_64": (0xC000003E, (0, 1, 3, 9, 10, 11, 12, 25, 28, 13, 14, 15, 38, 202, 228, 318, 60, 231)),
    "aarch64": (0xC00000B7, (63, 64, 57, 222, 226, 215, 214, 216, 233, 134, 135, 139, 103, 98, 113, 278, 93, 94)),
}
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # instructions of the filter
ALLOWED, NOT_PERMITTED = 0x7FFF0000, 0x00050001  # what it returns: go on, or EPERM


class Instruction(ctypes.Structure):
    """`struct sock_filter`."""

    _fields_ = [("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32)]


class Filter(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = [("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(Instruction))]


def limit() -> None:
    """Bounds on memory and time; no file, no process, no core dump from here on."""
    for what, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CPU, CPU_SECONDS_IN_ALL), (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 3), (resource.RLIMIT_NPROC, 0), (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        resource.setrlimit(what, (most, most))


def leave_network() -> bool:
    """Into a network namespace without interfaces; False where that is not permitted."""
    return ctypes.CDLL(None).unshare(NEW_NETWORK) == 0


def filter_system_calls() -> bool:
    """From here on every system call but those of `MACHINES` fails with EPERM; False where the kernel has no filter."""
    machine = MACHINES.get(platform.machine())
    if machine is None or sys.maxsize < 2**32:
        return False
    number, allowed = machine
    listed = [
        Instruction(LOAD, 0, 0, 4), Instruction(EQUAL, 1, 0, number), Instruction(RETURN, 0, 0, NOT_PERMITTED),
        Instruction(LOAD, 0, 0, 0),
        *(Instruction(EQUAL, len(allowed) - i, 0, call) for i, call in enumerate(allowed)),
        Instruction(RETURN, 0, 0, NOT_PERMITTED), Instruction(RETURN, 0, 0, ALLOWED),
    ]  # fmt: skip
    program = (Instruction * len(listed))(*listed)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return False
    return prctl(SET_FILTER, FILTER, ctypes.byref(Filter(len(listed), program)), 0, 0) == 0


def shut_in() -> dict[str, bool]:
    """Build the walls; which of those that need the kernel's leave stand."""
    network = leave_network()
    limit()
    return {"network_namespace": network, "system_calls": filter_system_calls()}


def answer(line: bytes) -> dict[str, str]:
    """What the program on the line comes to: its value's repr, or what went wrong."""
    try:
        value = repr(execute(json.loads(line)))
    except Refused as error:
        return {"refused": str(error)}
    except RAISED as error:
        return {"raised": f"{type(error).__name__}: {error}"[:MOST_REPLY]}
    return {"value": value} if len(value) <= MOST_REPLY else {"raised": "the value is too long"}


def main(programs: IO[bytes], replies: IO[bytes]) -> None:
    """Tell which walls stand, then answer line by line until the programs end."""
    say(replies, shut_in())
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    while line := programs.readline():
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal kills, whatever runs
        reply = answer(line)
        signal.setitimer(signal.ITIMER_PROF, 0)
        say(replies, reply)


def say(replies: IO[bytes], reply: object) -> None:
    """One line of JSON."""
    replies.write(json.dumps(reply).encode() + b"\n")
    replies.flush()


def begin() -> None:
    """On standard input and output."""
    main(sys.stdin.buffer, sys.stdout.buffer)
