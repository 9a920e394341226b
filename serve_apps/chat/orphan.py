"""Runs inside vLLM's engine process: ends it when the process that started it is gone.

vLLM's single-process executor does not notice a killed parent, and would hold its memory for ever.
"""

import os
import select
import threading


class DiesWithParent:
    """Mixed into the worker (`worker_extension_cls`); importing this module is what matters."""


def _watch(parent: int) -> None:
    try:
        descriptor = os.pidfd_open(parent)
    except OSError:
        os._exit(1)
    if os.getppid() != parent:  # it went between the two calls, and the id may be another's by now
        os._exit(1)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.poll()
    os._exit(1)


threading.Thread(target=_watch, args=(os.getppid(),), daemon=True, name="dies-with-parent").start()
