"""AI Farm: a worker on the WebSocket, and the tasks that it is given."""

import json
import time
from contextlib import suppress
from typing import Any

import httpx
from contract.conformance.platform import EXAMPLES, NOT_BUILT, RUN, NotYet, Platform
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

HEADERS = {"x-total-count", "x-page-count", "x-api-version"} | {
    f"x-ratelimit-{name}" for name in ("limit", "remaining", "reset")
}


class Worker:
    """A farm client."""

    def __init__(self, ws: ClientConnection) -> None:
        self.ws, self.client_id = ws, f"client_{RUN}"

    def send(self, kind: str, **fields: Any) -> None:
        message = {"type": kind, "client_id": self.client_id, "timestamp": "2024-11-04T12:00:00Z"}
        self.ws.send(json.dumps(message | fields))

    def receive(self, kind: str, seconds: float = 30) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            message = json.loads(self.ws.recv(timeout=seconds))
            if message.get("type") == kind:
                return message
        return {}


def run(p: Platform) -> None:
    """The whole document."""
    bare = httpx.Client(base_url=p.url)
    p.error("aifarm: no token is 401", bare.get("/api/tasks"), 401, "UNAUTHORIZED", "error.code")
    p.error("aifarm: an unknown task is 404", p.get("/api/tasks/none"), 404, "NOT_FOUND", "error.code")
    untyped = p.post("/api/tasks", {"name": "x"})
    p.error("aifarm: a task without a type is 400", untyped, 400, "INVALID_REQUEST", "error.code")
    with suppress(NotYet):
        headers = {"Client-ID": f"client_{RUN}", **p.headers()}
        with p.socket("aifarm WS the worker's socket", p.farm_ws, headers) as ws:
            task_id = work(p, Worker(ws))
        if task_id:
            lists(p, task_id)
    bad_token(p)


def work(p: Platform, worker: Worker) -> str:
    """One task from order to result; its id, or nothing where it cannot be ordered."""
    worker.send(
        "heartbeat", system_info={"cpu_usage": 45.2, "ram_usage": 60.5, "gpu_usage": 0.0},
        resources={"cpu": {"cores": 8, "usage": 45.2}, "ram": {"total": 16384, "used": 8192}, "gpu": []},
    )  # fmt: skip
    key = "aifarm POST /api/tasks"
    order = EXAMPLES[key]["request"] | {"name": f"model_{RUN}", "n_clients": 1, "distributed": False}
    task_id = p.call(key, body=order).get("id", "")
    if not task_id:
        return ""
    worker.send("task_request")
    task = worker.receive("task")
    data = task.get("data", {})
    given = data.get("id") == task_id and {"type", "config", "requirements"} <= data.keys()
    p.check.that("aifarm WS the worker is assigned the task", given, task)
    ranked = {"rank", "world_size"} <= data.get("config", {}).keys()
    p.check.that("aifarm WS the assignment carries rank and world size", ranked, data)
    metrics = {"loss": 0.5, "accuracy": 0.9, "learning_rate": 0.001}
    worker.send("task_progress", task_id=task_id, progress=45.5, metrics=metrics)
    here = f"/api/tasks/{task_id}"
    p.wait("aifarm: progress shows over HTTP", 10, lambda: p.get(here).json().get("progress") == 45.5)
    path = {"task_id": task_id}
    p.call("aifarm GET /api/tasks/{task_id}", path=path)
    p.call("aifarm GET /api/metrics/tasks/{task_id}", path=path)
    for status, action in (("paused", "pause"), ("running", "resume")):
        p.call("aifarm PUT /api/tasks/{task_id}/status", path=path, body={"status": status, "reason": "conformance"})
        control = worker.receive("control")
        good = control.get("action") == action and control.get("task_id") == task_id
        p.check.that(f"aifarm WS control {action}", good, control)
    p.call("aifarm GET /api/clients")
    p.call("aifarm GET /api/clients/{client_id}", path={"client_id": worker.client_id})
    worker.send(
        "task_result", task_id=task_id, status="completed", checkpoint_path="/path/to/model.pt",
        metrics={"final_loss": 0.0018, "final_accuracy": 0.988, "training_time": 3600},
    )  # fmt: skip
    ack = worker.receive("task_result_ack")
    good = ack.get("task_id") == task_id and ack.get("received") is True
    p.check.that("aifarm WS the result is acknowledged", good, ack)
    p.wait("aifarm: the task is completed", 10, lambda: p.get(here).json().get("status") == "completed")
    return task_id


def lists(p: Platform, task_id: str) -> None:
    names = {k.lower() for k in p.get("/api/tasks", params={"page": 1, "limit": 1}).headers}
    p.check.that("aifarm: pagination, version and rate limit headers", names >= HEADERS, names)
    p.call("aifarm GET /api/tasks")
    p.call("aifarm GET /api/metrics")
    p.call("aifarm DELETE /api/tasks/{task_id}", path={"task_id": task_id}, shape=False)


def bad_token(p: Platform) -> None:
    what = "aifarm WS refuses a bad token"
    try:
        with connect(p.farm_ws, additional_headers={"Client-ID": "x", "Authorization": "Bearer nonsense"}) as ws:
            ws.recv(timeout=5)
            p.check.that(what, False, "the socket stayed open")
    except InvalidStatus as refused:
        status = refused.response.status_code
        p.check.later(what) if status == NOT_BUILT else p.check.that(what, status in (401, 403), status)
    except ConnectionClosed as closed:
        p.check.that(what, closed.rcvd is not None and closed.rcvd.code == 1008, closed)
    except TimeoutError:
        p.check.that(what, False, "the socket stayed open and silent")
