"""The garbage collector of a process that serves."""

import gc

YOUNG = 20_000  # new containers between two collections; Python's 700 are one record of ours

def settle() -> None:
    """Call once start-up is over: what was made until now stays for good, and no collection walks over it again.

    With Ray, torch and the routes of six dialects in the heap a full collection stopped a replica for about 150 ms,
    often enough to be the 99th percentile of every request (docs/log.md).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 20, 20)
