"""Starting long work outside the request: a job has an id, a command, a state and a log."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol

from cluster.errors import Unavailable


class JobState(StrEnum):
    """Where a job is; UNKNOWN when the cluster has no trace of it."""

    UNKNOWN = "UNKNOWN"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


class Launcher(Protocol):
    """Submit, stop, look. `submit` is idempotent by `job_id`. All raise `Unavailable` when the cluster is away."""

    async def submit(self, job_id: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the command, unless a job of that id was started before."""
        ...

    async def stop(self, job_id: str) -> None:
        """End the job; nothing happens where it has ended or never was."""
        ...

    async def state(self, job_id: str) -> JobState:
        """Where the job is."""
        ...

    async def log(self, job_id: str) -> str:
        """What the job printed so far; empty where there is no such job."""
        ...


class RayLauncher:
    """Jobs as Ray jobs, through the cluster's job server. They use the installed environment as it is."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._connected: Any = None

    async def _client(self) -> Any:
        import asyncio

        from ray.job_submission import JobSubmissionClient

        if self._connected is None:
            try:
                self._connected = await asyncio.to_thread(JobSubmissionClient, self.address)
            except (ConnectionError, RuntimeError) as error:
                raise Unavailable("the job server does not answer", component="ray") from error
        return self._connected

    async def _ask(self, verb: str, *arguments: Any, **named: Any) -> Any:
        import asyncio

        client = await self._client()
        try:
            return await asyncio.to_thread(getattr(client, verb), *arguments, **named)
        except ConnectionError as error:
            self._connected = None
            raise Unavailable("the job server does not answer", component="ray") from error

    async def submit(self, job_id: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """See `Launcher`."""
        import shlex

        if await self.state(job_id) is not JobState.UNKNOWN:
            return
        runtime = {"env_vars": dict(environment)}
        try:
            await self._ask("submit_job", entrypoint=shlex.join(command), submission_id=job_id, runtime_env=runtime)
        except RuntimeError as error:
            if "already" not in str(error):
                raise Unavailable(f"the job server refused {job_id}: {error}", component="ray") from error

    async def stop(self, job_id: str) -> None:
        """See `Launcher`."""
        if await self.state(job_id) in (JobState.PENDING, JobState.RUNNING):
            await self._ask("stop_job", job_id)

    async def state(self, job_id: str) -> JobState:
        """See `Launcher`."""
        try:
            return JobState(str((await self._ask("get_job_status", job_id)).value))
        except RuntimeError as error:
            if "does not exist" in str(error):
                return JobState.UNKNOWN
            raise Unavailable(str(error), component="ray") from error

    async def log(self, job_id: str) -> str:
        """See `Launcher`."""
        if await self.state(job_id) is JobState.UNKNOWN:
            return ""
        return await self._ask("get_job_logs", job_id)
