"""Jobs as processes, for tests that need a training job and no village."""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence

from cluster.launcher import JobState


class Processes:
    """Jobs as processes, each of which starts a Ray of its own."""

    def __init__(self) -> None:
        self.started: list[asyncio.subprocess.Process] = []

    async def submit(self, job_id: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        job = await asyncio.create_subprocess_exec(*command, env=own | dict(environment), start_new_session=True)
        self.started.append(job)

    async def stop(self, job_id: str) -> None:
        for job in self.started:
            if job.returncode is None:
                os.killpg(job.pid, signal.SIGKILL)

    async def state(self, job_id: str) -> JobState:
        return JobState.RUNNING

    async def log(self, job_id: str) -> str:
        return ""
