"""Agents that behave as `plan.conduct` says, often badly, and note what they were given and what they said."""

import asyncio
import json
import logging
import os
import secrets
import signal
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import web

from cluster.torture.notes import Notes
from cluster.torture.plan import Conduct, conduct
from cluster.workers.work import Job, Work

log = logging.getLogger("village.torture.agent")
AGAIN_SECONDS = 0.1
REPORTS = 20  # tries of one report while nobody answers
Chooses = Callable[[dict[str, Any]], Conduct]


def attempt_of(attempt_id: str) -> int:
    """The number of a delivery."""
    return int(attempt_id.rpartition(".")[2])


def result_of(input_data: dict[str, Any], attempt: int, agent: str, how: Conduct) -> dict[str, Any]:
    """A result that no other attempt has; `n` is what everybody finds who does not lie."""
    n = input_data["n"] + (how.what == "lie")
    return {"n": n, "attempt": attempt, "agent": agent, "chance": secrets.token_hex(8)}


class Agent:
    """What pushed and pulling agents have in common. `way` says which conduct is theirs."""

    def __init__(self, name: str, way: str, seed: int, well: bool, callback: str, notes: Notes) -> None:
        self.name, self.way, self.seed, self.well = name, way, seed, well
        self.callback, self.notes = callback, notes
        self.reporting: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """For calls to the gate."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10))
        return self._session

    def given(self, task: dict[str, Any]) -> Conduct:
        """Note the delivery, and say how it goes."""
        attempt = attempt_of(task["attempt_id"])
        how = conduct(self.seed, self.way, task["input_data"], attempt, well=self.well)
        self.notes.note("given", agent=self.name, task_id=task["task_id"], attempt=attempt, conduct=how.what)
        return how

    def answer(self, task: dict[str, Any], how: Conduct) -> dict[str, Any]:
        """A result that no other attempt has, noted before anybody hears of it."""
        attempt = attempt_of(task["attempt_id"])
        if how.what == "fail":
            return {"status": "FAILED", "error": "as planned"}
        result = result_of(task["input_data"], attempt, self.name, how)
        self.notes.note("result", task_id=task["task_id"], **result)
        return {"status": "COMPLETED", "result_data": result}

    def report_aside(self, task: dict[str, Any], how: Conduct, times: int = 1) -> None:
        """Report later, beside whatever else goes on."""
        reporting = asyncio.create_task(self.report(task, how, times))
        self.reporting.add(reporting)
        reporting.add_done_callback(self.reporting.discard)

    async def report(self, task: dict[str, Any], how: Conduct, times: int = 1) -> None:
        """So many different results of one attempt: at most one of them may count."""
        await asyncio.sleep(task["timeout_seconds"] + 0.3 if how.what == "late" else how.seconds)
        if how.what == "progress":
            await self._post(task, "progress", {})
            await asyncio.sleep(how.seconds)
        for _ in range(times):
            answer = self.answer(task, how)
            status = await self._post(task, "result", answer)
            if status == 200 and answer["status"] == "COMPLETED":
                result = answer["result_data"]
                self.notes.note("taken", task_id=task["task_id"], **result)

    async def _post(self, task: dict[str, Any], what: str, body: dict[str, Any]) -> int:
        url, headers = f"{self.callback}/ains/tasks/{task['task_id']}/{what}", {"X-Task-Token": task["task_token"]}
        for _ in range(REPORTS):
            try:
                async with self.session.post(url, json=body, headers=headers) as answer:
                    if answer.status < 500:
                        return answer.status
            except (aiohttp.ClientError, TimeoutError):
                pass  # written or not: asking again is harmless, and a 409 says that it is over
            await asyncio.sleep(AGAIN_SECONDS)
        return 0


class PushAgent(Agent):
    """Listens on a port of its own."""

    async def serve(self, port: int) -> None:
        """For ever."""
        app = web.Application()
        app.router.add_post("/", self.handle)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, reuse_port=True).start()
        await asyncio.Event().wait()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One delivery."""
        task = await request.json()
        how = self.given(task)
        match how.what:
            case "report" | "late":
                self.report_aside(task, how)
            case "twice":
                self.report_aside(task, how, times=2)
            case "both":
                self.report_aside(task, Conduct("report", how.seconds / 10))
                await asyncio.sleep(how.seconds / 10)
                return web.json_response(self.answer(task, how))
            case "never":
                pass
            case "error" | "busy":
                return web.Response(status=500 if how.what == "error" else 503)
            case "garbage":
                return web.Response(text='{"status": "COMPL')
            case "silent":
                await asyncio.Event().wait()
            case "cut" if request.transport is not None:
                request.transport.abort()
            case _:
                await asyncio.sleep(how.seconds)
                return web.json_response(self.answer(task, how))
        return web.Response(status=202)


class PullAgent(Agent):
    """Asks for its tasks, with as many polls at once as it has room."""

    async def pull(self, room: int) -> None:
        """For ever."""
        await asyncio.gather(*(self._polls() for _ in range(room)))

    async def _polls(self) -> None:
        url = f"{self.callback}/agents/{self.name}/next"
        while True:
            try:
                async with self.session.get(url, params={"wait": "2"}) as answer:
                    task = json.loads(await answer.read()) if answer.status == 200 else None
                    if answer.status >= 400:
                        await asyncio.sleep(AGAIN_SECONDS)
            except (aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            if task is not None:
                await self._do(task)

    async def _do(self, task: dict[str, Any]) -> None:
        how = self.given(task)
        if how.what == "late":
            self.report_aside(task, how)
        elif how.what != "never":
            await self.report(task, how, times=2 if how.what == "twice" else 1)


def callable_of(seed: int, well: bool, agent: str, notes: Notes) -> Work:
    """What the village's own workers run."""

    def work(input_data: dict[str, Any], job: Job) -> Any:
        how = conduct(seed, "pool", input_data, job.attempt, well=well)
        notes.note("given", agent=agent, task_id=job.task_id, attempt=job.attempt, conduct=how.what)
        job.wait(how.seconds)
        match how.what:
            case "fail":
                raise RuntimeError("as planned")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "long":
                job.wait(30)
            case "unsayable":
                return {"a": object()}
            case "progress":
                job.progress(50, "half of it")
        result = result_of(input_data, job.attempt, agent, how)
        notes.note("result", task_id=job.task_id, **result)
        return result

    return work
