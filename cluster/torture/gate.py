"""The way in: what the gateway does for tasks, as small as it gets, so that torture needs nothing above this package.

Several of them listen on one port, like the gateway's replicas.
"""

import logging
from typing import Any

from aiohttp import web

from cluster.clock import Clock
from cluster.errors import Conflict, NotFound, Unauthenticated, Unavailable, VillageError
from cluster.identity.model import Principal
from cluster.store import Store
from cluster.tasks.service import Tasks, TaskSpec
from cluster.workers.model import Agent
from cluster.workers.pulling import Poll, Pulling
from cluster.workflows.chains.model import Step
from cluster.workflows.chains.service import Chains
from cluster.workflows.schedules.service import Schedules

log = logging.getLogger("village.torture.gate")
STATUS = ((Unavailable, 503), (Unauthenticated, 401), (NotFound, 404), (Conflict, 409))


def client(name: str) -> Principal:
    """One of the clients, as if with its API key."""
    return Principal(principal_id=f"key_{name}", owner=f"client_{name}", username=name, client_id=name)


@web.middleware
async def errors(request: web.Request, handler: Any) -> web.StreamResponse:
    """An error of the core as a status."""
    try:
        return await handler(request)
    except VillageError as error:
        status = next((status for kind, status in STATUS if isinstance(error, kind)), 400)
        return web.json_response({"error": error.message}, status=status)


class Gate:
    """The routes."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store, self.clock = store, clock
        self.tasks = Tasks(store, clock)
        self.chains, self.schedules = Chains(store, self.tasks, clock), Schedules(store, self.tasks, clock)
        self.pulling = Pulling(store, clock)

    def app(self) -> web.Application:
        """For aiohttp to serve."""
        app = web.Application(middlewares=[errors], client_max_size=16 << 20)
        app.router.add_post("/clients/{client}/tasks", self.submit)
        app.router.add_post("/clients/{client}/tasks/{task_id}/cancel", self.cancel)
        app.router.add_post("/clients/{client}/chains", self.chain)
        app.router.add_post("/clients/{client}/schedules", self.schedule)
        app.router.add_post("/ains/tasks/{task_id}/result", self.result)
        app.router.add_post("/ains/tasks/{task_id}/progress", self.progress)
        app.router.add_get("/agents/{agent_id}/next", self.next)
        return app

    async def submit(self, request: web.Request) -> web.Response:
        """Tasks, all or none."""
        specs = [TaskSpec(**spec) for spec in await request.json()]
        tasks = await self.tasks.submit(client(request.match_info["client"]), specs)
        return web.json_response({"task_ids": [task.task_id for task in tasks]}, status=201)

    async def cancel(self, request: web.Request) -> web.Response:
        """A task."""
        where = request.match_info
        task = await self.tasks.cancel(client(where["client"]), where["task_id"], "no longer needed")
        return web.json_response({"status": task.state})

    async def chain(self, request: web.Request) -> web.Response:
        """A chain."""
        body, name = await request.json(), request.match_info["client"]
        steps = [Step(**step) for step in body]
        made, _ = await self.chains.create(client(name), client_id=name, name="torture", steps=steps)
        return web.json_response({"chain_id": made.chain_id}, status=201)

    async def schedule(self, request: web.Request) -> web.Response:
        """A schedule."""
        name = request.match_info["client"]
        made = await self.schedules.create(client(name), client_id=name, **await request.json())
        return web.json_response({"schedule_id": made.schedule_id}, status=201)

    async def result(self, request: web.Request) -> web.Response:
        """An agent's report."""
        body, token = await request.json(), request.headers.get("X-Task-Token", "")
        error = None if body["status"] == "COMPLETED" else str(body.get("error"))
        task = await self.tasks.report(
            request.match_info["task_id"], token, result_data=body.get("result_data"), error=error
        )
        return web.json_response({"status": task.state})

    async def progress(self, request: web.Request) -> web.Response:
        """An agent's sign of life."""
        where, token = request.match_info, request.headers.get("X-Task-Token", "")
        await self.tasks.progress(where["task_id"], token, 50.0)
        task = await self.tasks.heartbeat(where["task_id"], token, 0.5)
        return web.json_response({"status": task.state})

    async def next(self, request: web.Request) -> web.Response:
        """A task for an agent that pulls; 204 if none came in time."""
        agent = await self.store.get(Agent, request.match_info["agent_id"])
        poll = Poll(agent, 1)
        try:
            tasks = await self.pulling.next(poll, float(request.query.get("wait", 0)))
        finally:
            poll.leave()
        if not tasks:
            return web.Response(status=204)
        task = tasks[0]
        return web.json_response(
            {
                "task_id": task.task_id, "attempt_id": task.attempt_id, "input_data": task.input_data,
                "task_token": task.task_token, "timeout_seconds": task.timeout_seconds,
            }
        )  # fmt: skip


async def listen(store: Store, clock: Clock, port: int) -> None:
    """Serve for ever."""
    runner = web.AppRunner(Gate(store, clock).app(), handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_port=True).start()
