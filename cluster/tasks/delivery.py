"""Push delivery: one POST to the agent's endpoint, and what its answer means."""

from dataclasses import dataclass
from typing import Any

import aiohttp
from pydantic_core import from_json

from cluster.clock import iso
from cluster.egress import Egress, told
from cluster.tasks.model import Task

MAX_ANSWER_BYTES = 16 << 20
BUSY = frozenset({429, 502, 503, 504})


@dataclass(frozen=True)
class Completed:
    """The agent did it."""

    result_data: Any


@dataclass(frozen=True)
class Failed:
    """The agent, or its answer, says that it went wrong."""

    error: str


@dataclass(frozen=True)
class Accepted:
    """The agent will report by itself."""


@dataclass(frozen=True)
class Unreachable:
    """No answer that says anything of the task."""

    error: str


Outcome = Completed | Failed | Accepted | Unreachable


def message(task: Task, callback_url: str) -> dict[str, Any]:
    """What the agent is sent."""
    return {
        "task_id": task.task_id, "attempt_id": task.attempt_id, "task_type": task.task_type,
        "capability_required": task.capability_required, "input_data": task.input_data, "priority": task.priority,
        "timeout_seconds": task.timeout_seconds, "deadline": iso(task.deadline) if task.deadline else None,
        "metadata": task.metadata, "task_token": task.task_token,
        "callback_url": f"{callback_url}/ains/tasks/{task.task_id}/result",
    }  # fmt: skip


def outcome(status: int, body: bytes) -> Outcome:
    """What an answer means. Pure."""
    if status == 202:
        return Accepted()
    if status in BUSY:
        return Unreachable(f"the agent answered {status}")
    if not 200 <= status < 300:
        return Failed(f"the agent answered {status}")
    try:
        # Strict, unlike json.loads: no NaN, no lone surrogates, no bottomless nesting may reach the record.
        answer = from_json(body, allow_inf_nan=False)
        verdict = answer["status"]
    except (ValueError, KeyError, TypeError):
        return Failed("the agent's answer is not an object with a status")
    if verdict == "COMPLETED":
        return Completed(answer.get("result_data"))
    if verdict == "FAILED":
        return Failed(str(answer.get("error") or "the agent gave no reason"))
    return Failed(f"the agent's answer has the unknown status {str(verdict)[:40]!r}")


class Delivery:
    """Delivers over HTTP. `public_only` refuses loopback and private addresses; redirects are never followed."""

    def __init__(self, callback_url: str, public_only: bool) -> None:
        self.callback_url, self.egress = callback_url, Egress(public_only)

    async def send(self, endpoint: str, task: Task) -> Outcome:
        """POST the task and wait for the answer, however long: the caller keeps the deadline."""
        try:
            async with self.egress.post(endpoint, json=message(task, self.callback_url)) as answer:
                body = await answer.content.read(MAX_ANSWER_BYTES + 1)
                while not answer.content.at_eof() and len(body) <= MAX_ANSWER_BYTES:
                    body += await answer.content.read(MAX_ANSWER_BYTES + 1 - len(body))
                if len(body) > MAX_ANSWER_BYTES:
                    return Failed(f"the agent's answer is longer than {MAX_ANSWER_BYTES} bytes")
                return outcome(answer.status, body)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Unreachable(told(error))

    async def close(self) -> None:
        """Give the connections back."""
        await self.egress.close()
