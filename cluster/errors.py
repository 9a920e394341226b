"""What can go wrong, without HTTP: each dialect maps these classes to its own codes and statuses.

VillageError
├── Invalid                 the request breaks a rule
│   ├── DependencyNotFound  a task names a dependency that does not exist
│   ├── CircularDependency  tasks that wait for each other
│   ├── UnknownStrategy     no such routing strategy
│   ├── BadSchedule         a cron expression or time zone that means nothing
│   ├── BadSignature        a registration's signature does not match its content
│   ├── IdempotencyMismatch a repeated Idempotency-Key came with another request
│   ├── TooLarge            the body, or a part of it, is over the limit
│   └── UnsupportedMedia    the body is of a kind that the route does not take
├── Unauthenticated         no credential, or one that is not (or no longer) good
├── Forbidden               a good credential without the scope that the route needs
├── NotFound                nothing of that id, or it belongs to somebody else
│   ├── TaskNotFound
│   ├── AgentNotFound
│   ├── TemplateNotFound
│   ├── ChainNotFound
│   └── ScheduleNotFound
├── Conflict                the thing is not in a state that allows this
│   ├── AlreadyExists
│   │   └── AgentExists
│   ├── NotCancellable
│   ├── StaleAttempt        a result for an attempt that is no longer the current one
│   ├── StillRunning        the first request with this Idempotency-Key has no answer yet
│   ├── AnswerLost          it was carried out, and its answer is not there any more
│   └── TrainingFailed      the model's training did not succeed
├── LimitExceeded           too many requests; `retry_after_seconds` says when to come back
├── Unavailable             a part that the request needs is away just now
│   ├── NoCapableAgent      no active agent can take such a task
│   ├── InsufficientResources  the machine cannot hold it
│   ├── ModelNotReady       the model is still in training or loading; details say how far
│   ├── PeerNetworkFailed   a peer, or the way to it
│   ├── AgentUnreachable    an agent does not answer, or not what it should
│   ├── FogFailed           a fog node, or the way to it
│   └── TimedOut            it took longer than the caller, or we, wanted to wait
└── NotBuilt                documented, and not built yet
"""

from typing import Any


class VillageError(Exception):
    """Base of every error that the platform raises on purpose; `details` go to the caller as they are."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def __reduce__(self) -> tuple[Any, ...]:
        # An error crosses Ray by pickle: keyword details would be lost by the default.
        return _rebuild, (type(self), self.message, self.details)


def _rebuild(kind: type[VillageError], message: str, details: dict[str, Any]) -> VillageError:
    return kind(message, **details)


class Invalid(VillageError):
    """The request breaks a rule."""


class DependencyNotFound(Invalid):
    """A task names a dependency that does not exist."""


class CircularDependency(Invalid):
    """Tasks that wait for each other."""


class UnknownStrategy(Invalid):
    """No such routing strategy."""


class BadSchedule(Invalid):
    """A cron expression or time zone that means nothing."""


class BadSignature(Invalid):
    """A registration's signature does not match its content."""


class IdempotencyMismatch(Invalid):
    """A repeated Idempotency-Key came with another body."""


class TooLarge(Invalid):
    """The body, or a part of it, is over the limit."""


class UnsupportedMedia(Invalid):
    """The body is of a kind that the route does not take."""


class Unauthenticated(VillageError):
    """No credential, or one that is not good."""


class Forbidden(VillageError):
    """A good credential without the scope that the route needs."""


class NotFound(VillageError):
    """Nothing of that id, or it belongs to somebody else."""


class TaskNotFound(NotFound):
    """No such task."""


class AgentNotFound(NotFound):
    """No such agent."""


class TemplateNotFound(NotFound):
    """No such task template."""


class ChainNotFound(NotFound):
    """No such task chain."""


class ScheduleNotFound(NotFound):
    """No such schedule."""


class Conflict(VillageError):
    """The thing is not in a state that allows this."""


class AlreadyExists(Conflict):
    """The id is taken."""


class AgentExists(AlreadyExists):
    """An agent of that id is registered."""


class NotCancellable(Conflict):
    """The task has ended."""


class StaleAttempt(Conflict):
    """A result for an attempt that is no longer the current one."""


class StillRunning(Conflict):
    """The first request with this Idempotency-Key has no answer yet."""


class AnswerLost(Conflict):
    """The first request with this Idempotency-Key was carried out, and its answer is not there any more."""


class TrainingFailed(Conflict):
    """The model's training did not succeed."""


class LimitExceeded(VillageError):
    """Too many requests; `retry_after_seconds` in details."""


class Unavailable(VillageError):
    """A part that the request needs is away just now."""


class NoCapableAgent(Unavailable):
    """No active agent can take such a task."""


class InsufficientResources(Unavailable):
    """The machine cannot hold it."""


class ModelNotReady(Unavailable):
    """The model is still in training or loading."""


class PeerNetworkFailed(Unavailable):
    """A peer, or the way to it."""


class AgentUnreachable(Unavailable):
    """An agent does not answer, or not what it should."""


class FogFailed(Unavailable):
    """A fog node, or the way to it."""


class TimedOut(Unavailable):
    """It took longer than the caller, or we, wanted to wait."""


class NotBuilt(VillageError):
    """Documented, and not built yet."""
