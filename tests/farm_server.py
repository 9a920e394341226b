"""A farm on loopback that plays its side of the wire over real sockets, as a test tells it to."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from aiohttp import WSCloseCode, web
from eventually import eventually

KEY = "ains_" + "k" * 43


class PlayedFarm:
    """`async with PlayedFarm() as farm`: `assign` a task, look at `got`. It is given again until its result came."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []  # every message, in order
        self.opened = 0
        self.tasks: list[dict[str, Any]] = []  # to hand out, the first one until it has a result
        self.given: set[str] = set()
        self.paused = False  # whoever gets a task is told to pause it
        self.acknowledges = True
        self.accepts = True
        self.keys = {KEY}
        self.tokens: set[str] = set()
        self.refuses_files = 0  # so many requests for files are answered with 503
        self.models: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}  # path -> what is there, or was put there
        self.asked: list[tuple[str, str]] = []
        self.sockets: dict[str, web.WebSocketResponse] = {}
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/", self._socket)
        app.router.add_get("/farm/ws", self._socket)
        app.router.add_get("/v1/models/{model}/download", self._model)
        app.router.add_post("/auth/token", self._token)
        app.router.add_route("*", "/{path:.*}", self._file)
        self.runner = web.AppRunner(app, shutdown_timeout=0.05, access_log=None)
        self.port = 0

    async def __aenter__(self) -> "PlayedFarm":
        await self.runner.setup()
        await self._listen()
        return self

    async def _listen(self) -> None:
        self.site = web.TCPSite(self.runner, "127.0.0.1", self.port, reuse_address=True)
        await self.site.start()
        self.port = self.runner.addresses[0][1]

    async def away(self) -> None:
        """Nobody answers any more."""
        await self.site.stop()
        await self.drop()

    async def back(self) -> None:
        """On the same port."""
        await self._listen()

    async def __aexit__(self, *_: object) -> None:
        for socket in self.sockets.values():
            await socket.close(code=WSCloseCode.GOING_AWAY)
        await self.runner.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def farm_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/farm/ws"

    # ---- what a test says and sees

    def assign(self, task_id: str = "task_1", type_: str = "training", **config: Any) -> dict[str, Any]:
        given = {
            "name": "tiny", "version": "1.0", "url": "http://model-server/models/tiny/1.0", "batch_size": 4,
            "learning_rate": 0.01, "steps": 20, "dataset": "tiny", "model": "model_tiny", "seed": 7, "attempt": 1,
            "distributed": False, "rank": 0, "world_size": 1, "round": 0, "rounds": 1, "lease_seconds": 60,
            "epochs": None, "checkpoint": None, "upload": f"/api/tasks/{task_id}/checkpoints/0?round=0",
        }  # fmt: skip
        task = {"id": task_id, "type": type_, "config": given | config, "requirements": {"min_ram": 1}}
        self.tasks.append(task)
        return task

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.got if message["type"] == kind]

    async def hears(self, kind: str, count: int = 1, within: float = 20) -> dict[str, Any]:
        await eventually(lambda: len(self.of(kind)) >= count, within)
        return self.of(kind)[-1]

    async def progress(self, least: float, within: float = 20) -> dict[str, Any]:
        return await eventually(
            lambda: next((m for m in self.of("task_progress") if m["progress"] >= least), None), within
        )

    async def send(self, message: Any) -> None:
        for socket in list(self.sockets.values()):
            if not socket.closed:
                await socket.send_str(message if isinstance(message, str) else json.dumps(message))

    async def control(self, action: str, task_id: str = "task_1") -> None:
        await self.send({"type": "control", "action": action, "task_id": task_id})

    async def drop(self) -> None:
        """Every connection breaks without a word, those that wait for another request too."""
        assert self.runner.server is not None
        for connection in self.runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    # ---- the wire

    def _known(self, request: web.Request) -> bool:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return request.headers.get("X-API-Key") in self.keys or bearer in self.keys | self.tokens

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if not self._known(request):
            return web.json_response({"error": {"code": "UNAUTHORIZED", "message": "no"}}, status=401)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        client = request.headers["Client-ID"]
        self.sockets[client] = socket
        self.opened += 1
        async for message in socket:
            said = json.loads(message.data)
            self.got.append(said)
            if said["type"] == "task_request" and self.tasks:
                await self._give(socket)
            elif said["type"] == "task_result" and self.acknowledges:
                await self._acknowledge(socket, said)
        return socket

    async def _give(self, socket: web.WebSocketResponse) -> None:
        task = self.tasks[0]
        again = {"resumed": True} if task["id"] in self.given else {}
        self.given.add(task["id"])
        await socket.send_str(json.dumps({"type": "task", "data": task | again}))
        if self.paused:
            await self.control("pause", task["id"])

    async def _acknowledge(self, socket: web.WebSocketResponse, said: dict[str, Any]) -> None:
        self.tasks = [task for task in self.tasks if task["id"] != said["task_id"]]
        reason = {} if self.accepts else {"reason": "late"}
        told = {"type": "task_result_ack", "task_id": said["task_id"], "received": True, "accepted": self.accepts}
        await socket.send_str(json.dumps(told | reason))

    async def _model(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["model"]
        return await self._answer(request, self.models.get(name))

    async def _file(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.path_qs))
        if request.method == "PUT" and self._known(request) and not self.refuses_files:
            self.files[request.path_qs] = await request.read()
            return web.json_response({"ok": True})
        return await self._answer(request, self.files.get(request.path_qs))

    async def _answer(self, request: web.Request, content: bytes | None) -> web.StreamResponse:
        if self.refuses_files:
            self.refuses_files -= 1
            return web.Response(status=503)
        if not self._known(request) or not request.headers.get("Client-ID"):
            return web.Response(status=401)
        if content is None:
            return web.json_response({"error": {"code": "NOT_FOUND", "message": "no such thing"}}, status=404)
        return web.Response(body=content, content_type="application/octet-stream")

    async def _token(self, request: web.Request) -> web.StreamResponse:
        said = await request.json()
        if said != {"username": "ann", "password": "right"}:
            return web.json_response({"success": False}, status=401)
        self.tokens = {f"jwt-{len(self.asked)}-{self.opened}"}
        return web.json_response({"success": True, "data": {"access_token": next(iter(self.tokens))}})


def tar_of(folder: Path, prefix: str = "model_tiny") -> bytes:
    """As the registry sends a model."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, f"{prefix}/{path.name}")
    return out.getvalue()
