"""The worker's side of the farm's wire, without I/O: what arrives and what happens goes in, actions come out.

A worker has at most one task. It asks again after every reconnect; the farm then gives the same task while the lease
holds, and the training goes on where it is. A result is sent again until the farm has acknowledged it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from train.farm.messages import Ack, Control, Problem, Refused, Task, parse

TYPES = ("training",)  # of tasks that this worker does
MOST_PAUSE = 60.0  # s between two requests, after failures
MOST_RESULTS = 64  # that wait to be acknowledged: a farm that never does so must not fill the memory

Status = Literal["completed", "failed", "stopped"]


@dataclass(frozen=True)
class Send:
    """Send this on the connection that is open now."""

    message: dict[str, Any]


@dataclass(frozen=True)
class Start:
    """Begin this task, or go on from what is left of it here."""

    task: Task


@dataclass(frozen=True)
class Steer:
    """Of the task that is being worked on. `leave`: it is no longer ours; end it without a result."""

    action: Literal["pause", "resume", "stop", "leave"]


@dataclass(frozen=True)
class Forget:
    """What is kept here of this piece of work is not needed any more."""

    key: str


@dataclass(frozen=True)
class AskLater:
    """Call `ask` after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Ended:
    """The farm has taken notice of a result."""

    task_id: str
    status: Status
    accepted: bool
    reason: str


@dataclass(frozen=True)
class Note:
    """Worth a line in the log."""

    text: str


Action = Send | Start | Steer | Forget | AskLater | Ended | Note


@dataclass
class Result:
    """A result that the farm has not acknowledged."""

    key: str
    message: dict[str, Any]
    beats: int = 0  # heartbeats since it was sent


class Session:
    """What one worker knows: the task that it works on, and the results that nobody has acknowledged."""

    def __init__(self, client_id: str, now: Callable[[], str]) -> None:
        self.client_id, self.now = client_id, now
        self.connected = False
        self.task: Task | None = None
        self.results: dict[str, Result] = {}  # by task
        self.failures = 0  # in a row

    def opened(self, system: dict[str, Any], resources: dict[str, Any]) -> list[Action]:
        """A connection is open: say what this machine is, repeat what was not acknowledged, ask."""
        self.connected = True
        repeated = [self._say(result) for result in self.results.values()]
        return [self._beat(system, resources), *repeated, *self.ask()]

    def closed(self) -> None:
        """The connection is gone. The training goes on."""
        self.connected = False

    def ask(self) -> list[Action]:
        """Ask for a task; with one in hand, for that it stays ours."""
        return [self._send("task_request")] if self.connected else []

    def heartbeat(self, system: dict[str, Any], resources: dict[str, Any]) -> list[Action]:
        """Time for a sign of life; a result that was answered by nothing for two of them is repeated."""
        if not self.connected:
            return []
        late: list[Action] = []
        for result in self.results.values():
            result.beats += 1
            if result.beats > 2:
                late.append(self._say(result))
        return [self._beat(system, resources), *late]

    def progressed(self, key: str, progress: float, metrics: dict[str, float]) -> list[Action]:
        """The training is so far, in percent."""
        if not self.connected or self.task is None or self.task.key != key:
            return []
        return [self._send("task_progress", **about(self.task), progress=progress, metrics=metrics)]

    def finished(self, key: str, status: Status, metrics: dict[str, float], **said: Any) -> list[Action]:
        """The work of that key has ended. `said`: `samples`, `checkpoint_path`, `error`."""
        if self.task is None or self.task.key != key:
            return []  # it was handed on meanwhile
        task, self.task = self.task, None
        return self._result(about(task), key, status, metrics, **said)

    def received(self, frame: str | bytes) -> list[Action]:
        """A frame of the farm's."""
        match parse(frame):
            case Task() as task:
                return self._assigned(task)
            case Refused(task_id, reason):
                return self._refused(task_id, reason)
            case Control() as control:
                return self._controlled(control)
            case Ack() as ack:
                return self._acknowledged(ack)
            case Problem(code=code, message=message):
                return [Note(f"the farm says {code!r}: {message[:300]!r}")]
            case None:
                return [Note("a message that this worker does not know")]

    def _assigned(self, task: Task) -> list[Action]:
        told = self.results.get(task.id)
        if told is not None and told.key == task.key and told.message.get("attempt") == task.config.attempt:
            return [self._say(told)]
        if self.task is not None and self.task.key == task.key:
            self.task = task
            # The farm's word counts: if it is paused there, a `pause` follows.
            return [Steer("resume"), Note(f"task {task.id!r} is still ours")]
        self.results.pop(task.id, None)  # of an earlier round or attempt: the farm is past it
        given_up: list[Action] = []
        if self.task is not None:
            given_up = [Steer("leave"), Note(f"task {self.task.id!r} is no longer ours")]
            self.task = None
        if task.type not in TYPES:
            reason = f"this worker does tasks of type {', '.join(TYPES)}, not {task.type!r}"
            return [*given_up, *self._result(about(task), task.key, "failed", {}, error=reason)]
        self.task = task
        return [*given_up, Start(task)]

    def _refused(self, task_id: str, reason: str) -> list[Action]:
        noted: list[Action] = [Note(f"a task that cannot be done: {reason!r}")]
        if not task_id or (self.task is not None and self.task.id == task_id):
            return noted
        return [*noted, *self._result({"task_id": task_id}, "", "failed", {}, error=f"the task is not valid: {reason}")]

    def _controlled(self, control: Control) -> list[Action]:
        if self.task is None or self.task.id != control.task_id:
            return []
        return [Steer(control.action), Note(f"{control.action} task {control.task_id!r}")]

    def _acknowledged(self, ack: Ack) -> list[Action]:
        result = self.results.get(ack.task_id)
        if result is None or not ack.received:
            return []
        del self.results[ack.task_id]
        status: Status = result.message["status"]
        self.failures = self.failures + 1 if status == "failed" else 0
        ended = Ended(ack.task_id, status, ack.accepted, ack.reason)
        # What was stopped may be handed out again, and perhaps to us.
        done = result.key and status != "stopped" and (self.task is None or self.task.key != result.key)
        forgotten: list[Action] = [Forget(result.key)] if done else []
        if self.task is not None:
            return [*forgotten, ended]
        # A worker that fails whatever it is given should not ask a hundred times a second.
        again = AskLater(min(2.0**self.failures, MOST_PAUSE)) if self.failures else None
        return [*forgotten, ended, *([again] if again else self.ask())]

    def _result(
        self, work: dict[str, Any], key: str, status: Status, metrics: dict[str, float], **said: Any
    ) -> list[Action]:
        fields = {"status": status, "metrics": metrics, "checkpoint_path": None, "samples": 0} | said
        while len(self.results) >= MOST_RESULTS:
            del self.results[next(iter(self.results))]
        result = self.results[work["task_id"]] = Result(key, work | fields)
        return [self._say(result)] if self.connected else []

    def _say(self, result: Result) -> Send:
        result.beats = 0
        return self._send("task_result", **result.message)

    def _beat(self, system: dict[str, Any], resources: dict[str, Any]) -> Send:
        return self._send("heartbeat", system_info=system, resources=resources)

    def _send(self, kind: str, **fields: Any) -> Send:
        return Send({"type": kind, "client_id": self.client_id, **fields, "timestamp": self.now()})


def about(task: Task) -> dict[str, Any]:
    """Which try at which work a message is about."""
    attempt = {} if task.config.attempt is None else {"attempt": task.config.attempt}
    return {"task_id": task.id, "round": task.config.round, **attempt}
