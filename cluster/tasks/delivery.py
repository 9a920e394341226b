"""Push delivery: one POST to the agent's endpoint, and what its answer means."""

import ipaddress
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver
from pydantic_core import from_json

from cluster.errors import Invalid
from cluster.tasks.model import Task

MAX_ANSWER_BYTES = 16 << 20
CONNECT_SECONDS = 5.0
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
        "timeout_seconds": task.timeout_seconds, "metadata": task.metadata, "task_token": task.task_token,
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


def refuse_private(address: str) -> None:
    """Raises `Invalid` for an address that is not public: what an agent names must not reach into our own network."""
    if not ipaddress.ip_address(address).is_global:
        raise Invalid("the endpoint's address is not public", field="endpoint")


class PublicOnly(AbstractResolver):
    """Resolves public addresses only, at each connection: a name that changes its mind is refused then."""

    def __init__(self) -> None:
        self.inner = aiohttp.ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[Any]:
        """See aiohttp."""
        found = await self.inner.resolve(host, port, family)
        for entry in found:
            refuse_private(entry["host"])
        return found

    async def close(self) -> None:
        """See aiohttp."""
        await self.inner.close()


class Delivery:
    """Delivers over HTTP. `public_only` refuses loopback and private addresses; redirects are never followed."""

    def __init__(self, callback_url: str, public_only: bool) -> None:
        self.callback_url, self.public_only = callback_url, public_only
        self._session: aiohttp.ClientSession | None = None

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            resolver = PublicOnly() if self.public_only else None
            connector = aiohttp.TCPConnector(limit=0, resolver=resolver, keepalive_timeout=30)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self._session

    async def send(self, endpoint: str, task: Task) -> Outcome:
        """POST the task and wait for the answer, however long: the caller keeps the deadline."""
        try:
            if self.public_only:
                self._refuse_literal(endpoint)
            async with self._connected().post(
                endpoint, json=message(task, self.callback_url), allow_redirects=False
            ) as answer:
                body = await answer.content.read(MAX_ANSWER_BYTES + 1)
                while not answer.content.at_eof() and len(body) <= MAX_ANSWER_BYTES:
                    body += await answer.content.read(MAX_ANSWER_BYTES + 1 - len(body))
                if len(body) > MAX_ANSWER_BYTES:
                    return Failed(f"the agent's answer is longer than {MAX_ANSWER_BYTES} bytes")
                return outcome(answer.status, body)
        except (aiohttp.ClientError, OSError, Invalid, ValueError) as error:
            return Unreachable(f"{type(error).__name__}: {error}"[:200])

    @staticmethod
    def _refuse_literal(endpoint: str) -> None:
        # A literal address is never resolved, so the resolver does not see it.
        host = urlsplit(endpoint).hostname or ""
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return
        refuse_private(host)

    async def close(self) -> None:
        """Give the connections back."""
        if self._session is not None:
            await self._session.close()
