"""Why a training failed, in one word for programs, beside the sentence for people."""

import errno
from collections.abc import Iterator
from enum import StrEnum

from cluster.errors import VillageError


class Cause(StrEnum):
    """The word in `Run.cause` and in the details of `MODEL_TRAINING_FAILED`."""

    GATE = "gate"  # the phase's gate refused the model
    NOT_FINITE = "loss_not_finite"
    EXPLODING = "exploding_gradients"
    OUT_OF_MEMORY = "out_of_memory"
    DISK_FULL = "disk_full"
    BASE_MODEL = "base_model"  # missing, unreadable, or of another kind
    DATA = "data"  # missing, unreadable, empty, or contaminated
    DAMAGED = "damaged_checkpoint"  # nothing whole to go on from
    JOB_LOST = "job_lost"  # the processes died too often
    OTHER = "other"


class Failed(VillageError):
    """A training that cannot go on, whoever repeats it; `cause` says why."""

    def __init__(self, message: str, cause: Cause = Cause.OTHER, **details: object) -> None:
        super().__init__(message, cause=cause.value, **details)

    def __reduce__(self):  # an error crosses Ray by pickle
        details = {k: v for k, v in self.details.items() if k != "cause"}
        return _failed, (self.message, Cause(self.details["cause"]), details)


def _failed(message: str, cause: Cause, details: dict[str, object]) -> Failed:
    return Failed(message, cause, **details)


def cause_of(error: BaseException) -> Cause | None:
    """The cause of an error that repeating would only repeat; None for what another attempt may survive."""
    for link in chain(error):
        if isinstance(link, Failed):
            return Cause(link.details["cause"])
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT):
            return Cause.DISK_FULL
        if isinstance(link, MemoryError) or "out of memory" in str(link) or "can't allocate memory" in str(link):
            return Cause.OUT_OF_MEMORY
        if isinstance(link, VillageError):
            return Cause.OTHER
    return None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
