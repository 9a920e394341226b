"""Jobs as processes, for tests that need a training job and no village."""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence

from cluster.launcher import JobState


class Processes:
    """Jobs as processes, each of which starts a Ray of its own."""

    def __init__(self) -> None:
        self.by_id: dict[str, asyncio.subprocess.Process] = {}
        self.environment: dict[str, str] = {}  # besides what a job is given

    async def submit(self, job_id: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        env = own | dict(environment) | self.environment
        self.by_id[job_id] = await asyncio.create_subprocess_exec(*command, env=env, start_new_session=True)

    async def stop(self, job_id: str) -> None:
        """That job, or all of them."""
        for name, job in self.by_id.items():
            if job_id in (name, "all") and job.returncode is None:
                os.killpg(job.pid, signal.SIGKILL)

    async def state(self, job_id: str) -> JobState:
        if (job := self.by_id.get(job_id)) is None:
            return JobState.UNKNOWN
        return JobState.RUNNING if job.returncode is None else JobState.FAILED

    async def log(self, job_id: str) -> str:
        return ""
