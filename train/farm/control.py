"""What is wanted of a training: set by the loop, obeyed by the training's thread between two steps."""

import threading
from collections.abc import Callable
from typing import Literal


class Stopped(Exception):
    """The farm ended it."""


class Left(Exception):
    """It ends here without a result: the task is another's now, or the worker goes."""


class Control:
    """What is wanted of a training: set by the loop, obeyed by the thread between two steps."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._paused = False
        self._end: type[Exception] | None = None

    @property
    def ended(self) -> type[Exception] | None:
        """Why it is to end, if it is."""
        return self._end

    @property
    def paused(self) -> bool:
        """Whether it is to rest."""
        return self._paused

    def steer(self, action: Literal["pause", "resume", "stop", "leave"]) -> None:
        """From any thread. An end is for good; the first one counts."""
        with self._changed:
            if action in ("pause", "resume"):
                self._paused = action == "pause"
            else:
                self._end = self._end or (Stopped if action == "stop" else Left)
            self._changed.notify_all()

    def obey(self, before_pause: Callable[[], None] = lambda: None) -> None:
        """Return when the training may go on; until then nothing is computed. Raises `Stopped`, `Left`."""
        if self._paused and self._end is None:
            before_pause()
        with self._changed:
            self._changed.wait_for(lambda: not self._paused or self._end is not None)
            if self._end is not None:
                raise self._end
