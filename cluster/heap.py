"""What a process that runs for long asks of Python and of the machine."""

import gc
import os

YOUNG = 20_000  # new containers between two collections; Python's 700 are one record of ours


def settle() -> None:
    """Call once start-up is over: what was made until now stays for good, and no collection walks over it again.

    With Ray, torch and the routes of six dialects in the heap a full collection stopped a replica for about 150 ms,
    often enough to be the 99th percentile of every request (docs/log.md).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 20, 20)


def stand_back() -> None:
    """For those that keep books: while the machine is full, whoever does the work goes first."""
    os.nice(5)
