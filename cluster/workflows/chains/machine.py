"""The life of a chain, as a table. Pure.

RUNNING -> COMPLETED              after the last step
   |  ^--> FAILED, CANCELLED      with a step that failed or was cancelled, or by request
   |  |        |
   +--+--------+                  the next step; a retry from the step that did not complete
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from cluster.errors import Conflict, Invalid, NotCancellable
from cluster.events import Event
from cluster.tasks.model import FINAL, Task, TaskState
from cluster.workflows.chains.model import Begun, Chain, ChainState, Step, task_id
from cluster.workflows.model import Author

PREVIOUS = "previous_output"


class ChainEvent(StrEnum):
    """What can happen to a chain."""

    NEXT = "go on with"
    FINISH = "finish"
    FAIL = "fail"
    CANCEL = "cancel"
    RETRY = "retry"


S, E = ChainState, ChainEvent
NEXT: dict[tuple[ChainState, ChainEvent], ChainState] = {
    (S.RUNNING, E.NEXT): S.RUNNING, (S.RUNNING, E.FINISH): S.COMPLETED, (S.RUNNING, E.FAIL): S.FAILED,
    (S.RUNNING, E.CANCEL): S.CANCELLED, (S.FAILED, E.RETRY): S.RUNNING, (S.CANCELLED, E.RETRY): S.RUNNING,
}  # fmt: skip
ENDED = frozenset({S.COMPLETED, S.FAILED, S.CANCELLED})


def advance(chain: Chain, event: ChainEvent, at: datetime, **update: Any) -> Chain:
    """The chain after `event`. Raises `Conflict`, or `NotCancellable` for a cancel."""
    after = NEXT.get((chain.state, event))
    if after is None:
        kind = NotCancellable if event is E.CANCEL else Conflict
        raise kind(f"cannot {event} a chain that is {chain.state}", chain_id=chain.chain_id, status=chain.state)
    update |= {"state": after, "updated_at": at, "completed_at": at if after in ENDED else None}
    return chain.model_copy(update=update)


def check(steps: Sequence[Step]) -> None:
    """Raises `Invalid`."""
    if steps[0].use_previous_output:
        raise Invalid("the first step has no previous output", field="steps.0.use_previous_output")


def created(
    chain_id: str, author: Author, client_id: str, name: str, description: str, steps: Sequence[Step], at: datetime
) -> Chain:
    """With its first step begun."""
    chain = Chain(
        chain_id=chain_id, author=author, client_id=client_id, name=name, description=description,
        total_steps=len(steps), created_at=at, updated_at=at,
    )  # fmt: skip
    return _begin(chain, steps[0], at)


def _begin(chain: Chain, step: Step, at: datetime) -> Chain:
    begun = Begun(
        name=step.name, task_id=task_id(chain.chain_id, len(chain.begun), chain.retries), task_type=step.task_type,
        capability=step.capability_required, begun_at=at,
    )  # fmt: skip
    return chain.model_copy(update={"begun": (*chain.begun, begun)})


def noted(chain: Chain, task: Task | None) -> Chain:
    """With the end of its current step's task, if that is the task and it has ended."""
    if task is None or task.task_id != chain.current.task_id or task.state not in FINAL:
        return chain
    update = {"state": task.state, "error": task.error or task.reason, "completed_at": task.completed_at}
    return chain.model_copy(update={"begun": (*chain.begun[:-1], chain.current.model_copy(update=update))})


def settle(chain: Chain, steps: Sequence[Step], task: Task, at: datetime) -> Chain:
    """The chain after a task of it has ended. Any other task, and one that was seen before, changes nothing."""
    after = noted(chain, task)
    if chain.state is not S.RUNNING or after is chain:
        return chain
    last = after.current
    if last.state is TaskState.CANCELLED:
        return advance(after, E.CANCEL, at, reason=because(last, "was cancelled"))
    if last.state is not TaskState.COMPLETED:
        return advance(after, E.FAIL, at, reason=because(last, "failed"))
    if after.completed_steps == chain.total_steps:
        return advance(after, E.FINISH, at)
    return _begin(advance(after, E.NEXT, at), steps[after.completed_steps], at)


def because(step: Begun, what: str) -> str:
    """Which step, and why."""
    return f"step {step.name!r} {what}" + (f": {step.error}" if step.error else "")


def cancel(chain: Chain, reason: str, at: datetime) -> Chain:
    """By request. Raises `NotCancellable` once it has ended."""
    return advance(chain, E.CANCEL, at, reason=reason)


def give_up(chain: Chain, task: Task | None, reason: str, at: datetime) -> Chain:
    """The chain whose next step cannot be begun; what `task` did for the last one is kept for a retry."""
    return advance(noted(chain, task), E.FAIL, at, reason=reason)


def retry(chain: Chain, steps: Sequence[Step], task: Task | None, at: datetime) -> Chain:
    """From the step that did not complete, with a new task. `task` is the current step's: it may have completed beside
    a cancellation, and is not done again then. Raises `Conflict` for a chain that runs or has completed.
    """
    again = advance(noted(chain, task), E.RETRY, at, reason="", retries=chain.retries + 1)
    again = again.model_copy(update={"begun": again.begun[: again.completed_steps]})
    if again.completed_steps == chain.total_steps:
        return advance(again, E.FINISH, at)
    return _begin(again, steps[again.completed_steps], at)


def input_of(step: Step, previous: Any) -> dict[str, Any]:
    """What the task of a step is given. The last result wins over data of the same name."""
    return step.input_data | ({PREVIOUS: previous} if step.use_previous_output else {})


def changed(before: Chain | None, after: Chain) -> Event:
    """The event of the change."""
    if before is None:
        kind = "chain.started"
    elif after.state is S.RUNNING:
        kind = "chain.retried" if before.state in ENDED else "chain.advanced"
    else:
        kind = {S.COMPLETED: "chain.completed", S.FAILED: "chain.failed", S.CANCELLED: "chain.cancelled"}[after.state]
    return told(after, kind, after.updated_at)


def told(chain: Chain, kind: str, at: datetime) -> Event:
    """An event about the chain as it is."""
    data = {
        "chain_id": chain.chain_id, "client_id": chain.client_id, "name": chain.name, "status": chain.state,
        "current_step": chain.current_step, "total_steps": chain.total_steps, "step": chain.current.name,
        "task_id": chain.current.task_id, "error": chain.reason,
    }  # fmt: skip
    return Event(kind=kind, subject=chain.chain_id, owner=chain.author.owner, at=at, data=data)


def expected(chain: Chain, steps: Sequence[Step], earlier: Iterable[Chain], at: datetime) -> datetime | None:
    """When a running chain will be done if each step takes as long as such steps took on average in `earlier` chains.

    None where one of its steps was never seen to complete: nothing is guessed.
    """
    took: dict[tuple[str, str], list[float]] = {}
    for step in (step for other in earlier for step in other.begun):
        if step.state is TaskState.COMPLETED and step.completed_at is not None:
            seconds = (step.completed_at - step.begun_at).total_seconds()
            took.setdefault((step.task_type, step.capability), []).append(seconds)
    left = steps[chain.current_step :]
    if chain.state is not S.RUNNING or not all((s.task_type, s.capability_required) in took for s in left):
        return None
    means = [sum(of) / len(of) for of in (took[s.task_type, s.capability_required] for s in left)]
    means[0] = max(means[0] - (at - chain.current.begun_at).total_seconds(), 0.0)
    return at + timedelta(seconds=sum(means))
