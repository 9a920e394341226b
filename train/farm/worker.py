"""The worker: one connection, one task at a time, one thread that trains. The connection may come and go.

`Session` decides; this carries out: sockets, files, the thread. A training never waits for the connection, and the
connection never waits for a training.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import orjson

from cluster.errors import Unauthenticated, VillageError
from train.farm import models
from train.farm.aside import first, in_thread
from train.farm.control import Control, Left, Stopped
from train.farm.identity import Folder
from train.farm.messages import MAX_MESSAGE, Task
from train.farm.protocol import Action, AskLater, Ended, Forget, Note, Send, Session, Start, Steer
from train.farm.resources import Machine, lacking
from train.farm.trainer import Job, Trained, train
from train.farm.transfer import Backoff, Gateway

T = TypeVar("T")
BEAT_SECONDS = 10.0
PING_SECONDS = 20.0  # a connection that does not answer one is dead
LINE_SECONDS = 30.0  # between two lines about progress
GRACE_SECONDS = 60.0  # for the step that is being computed, and for saving
STEADY_SECONDS = 10.0  # a connection that lived so long was a good one
Say = Callable[[str], None]


@dataclass
class Options:
    """What the operator has chosen."""

    farm_url: str
    device: str = "cpu"
    once: bool = False
    max_memory_mb: float = math.inf
    local: dict[str, Path] = field(default_factory=dict)
    checkpoint_seconds: float = 10.0
    beat_seconds: float = BEAT_SECONDS
    reconnect_seconds: float = 1.0  # the first pause


@dataclass
class Work:
    """What is being done."""

    task: Task
    control: Control
    ended: asyncio.Event
    running: asyncio.Task[None] | None = None


class Worker:
    """See the module. `run` returns when `once` is fulfilled or `leave` was called."""

    def __init__(self, options: Options, session: Session, gateway: Gateway, folder: Folder, say: Say) -> None:
        self.options, self.session, self.gateway, self.folder, self.say = options, session, gateway, folder, say
        self.machine = Machine(options.device, options.max_memory_mb)
        self.work: Work | None = None
        self.outbox: asyncio.Queue[bytes] | None = None  # of the connection that is open
        self.leaving = asyncio.Event()
        self.succeeded: bool | None = None  # the result that was acknowledged last
        self.refused: Unauthenticated | None = None
        self._said_at = -math.inf

    def leave(self) -> None:
        """Save and go; the task stays ours until its lease is over, so a restart goes on with it."""
        self.leaving.set()

    async def run(self) -> None:
        """Work until told to leave. Raises `Unauthenticated` when the credential is refused for good."""
        try:
            await first(self._stay_connected(), self.leaving.wait())
        finally:
            await self._let_go()
        if self.refused:
            raise self.refused

    async def _stay_connected(self) -> None:
        backoff, now = Backoff(self.options.reconnect_seconds), asyncio.get_running_loop().time
        while True:
            begun = now()
            try:
                why = await self._connection()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                why = f"{type(error).__name__}: {error}"
            if now() - begun > STEADY_SECONDS:
                backoff.reset()
            pause = backoff.pause()
            self.say(f"not connected ({why}); again in {pause:.1f} s")
            await asyncio.sleep(pause)

    async def _connection(self) -> str:
        """One connection from its beginning to its end, which is said in words."""
        headers = await self.gateway.headers()
        http = self.gateway.http
        try:
            socket = await http.ws_connect(
                self.options.farm_url, headers=headers, heartbeat=PING_SECONDS, max_msg_size=MAX_MESSAGE, compress=0
            )
        except aiohttp.WSServerHandshakeError as error:
            if error.status in (401, 403):
                self.gateway.credential.refused()
            return f"the farm answered {error.status}"
        async with socket:
            self.say(f"connected to {self.options.farm_url} as {self.session.client_id}")
            self.outbox = asyncio.Queue()
            try:
                self._perform(self.session.opened(*await self.machine.measure()))
                await first(self._hear(socket), self._speak(socket, self.outbox), self._beat())
            finally:
                self.outbox = None
                self.session.closed()
        return f"closed with {socket.close_code}"

    async def _hear(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                self._perform(self.session.received(message.data))

    async def _speak(self, socket: aiohttp.ClientWebSocketResponse, outbox: asyncio.Queue[bytes]) -> None:
        while True:
            await socket.send_str((await outbox.get()).decode())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.options.beat_seconds)
            self._perform(self.session.heartbeat(*await self.machine.measure()))

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(message):
                    self._send(message)
                case Start(task):
                    self._start(task)
                case Steer(wanted):
                    self._steer(wanted)
                case Forget(key):
                    self.folder.forget(key)
                case AskLater(seconds):
                    asyncio.get_running_loop().call_later(seconds, self._ask)
                case Ended():
                    self._ended(action)
                case Note(text):
                    self.say(text)

    def _send(self, message: dict[str, Any]) -> None:
        if self.outbox is not None:
            self.outbox.put_nowait(orjson.dumps(message))

    def _ask(self) -> None:
        self._perform(self.session.ask())

    def _ended(self, ended: Ended) -> None:
        refused = "" if ended.accepted else f", not accepted: {ended.reason[:300]!r}"
        self.say(f"task {ended.task_id!r} {ended.status}{refused}")
        self.succeeded = ended.status == "completed" and ended.accepted
        if self.options.once:
            self.leave()

    # ---- the task

    def _start(self, task: Task) -> None:
        before = self.work
        self.work = Work(task, Control(), asyncio.Event())
        self.work.running = asyncio.create_task(self._do(self.work, before.running if before else None))

    def _steer(self, wanted: Any) -> None:
        if self.work is None:
            return
        self.work.control.steer(wanted)
        if self.work.control.ended:
            self.work.ended.set()

    async def _do(self, work: Work, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])  # two trainings at once would have one memory
        task, key = work.task, work.task.key
        config = task.config
        self.say(
            f"task {task.id!r} {config.name!r}: rank {config.rank} of {config.world_size}, round {config.round + 1} of "
            f"{config.rounds}, model {config.model or 'fresh'}, dataset {config.dataset or 'corpus'}"
        )
        try:
            trained = await self._train(work)
            said = {
                "samples": trained.samples, "checkpoint_path": f"{self.session.client_id}/step-{trained.step}"
            }  # fmt: skip
            self._perform(self.session.finished(key, trained.status, trained.metrics, **said))
        except Left:
            self.say(f"task {task.id!r} is left where it is")
        except Stopped:
            self._perform(self.session.finished(key, "stopped", {}))
        except Unauthenticated as error:
            self.refused = error  # no fault of the task: with a new credential it goes on
            self.leave()
        except VillageError as error:
            self.say(f"task {task.id!r} cannot be done: {error.message!r}")
            self._perform(self.session.finished(key, "failed", {}, error=error.message))
        except Exception as error:
            # What went wrong inside is for the operator; the farm need not know this machine's paths.
            self.say(f"task {task.id!r} failed: {error!r}")
            self._perform(self.session.finished(key, "failed", {}, error=f"the worker failed: {type(error).__name__}"))

    async def _train(self, work: Work) -> Trained:
        """Fetch, train, hand over. Raises `Stopped`, `Left`, `VillageError`."""
        task, config = work.task, work.task.config
        _, resources = await self.machine.measure()
        if lack := lacking(task.requirements, resources):
            raise VillageError(f"this machine cannot hold the task: {lack}")
        folder = self.folder.of(task.key)
        await asyncio.to_thread(self.folder.forget_others, task.key)
        model_folder = await self._unless_ended(work, self._model(config.model, folder)) if config.model else None
        weights = folder / "global.safetensors" if config.checkpoint else None
        if weights is not None and config.checkpoint and not weights.exists():
            address = self.gateway.address(config.checkpoint)
            await self._unless_ended(work, self.gateway.download(address, weights))
        target = self.gateway.address(config.upload) if config.upload else None  # a bad one is known before the work
        memory = self.options.max_memory_mb
        job = Job(
            task, folder, model_folder, weights, self.options.local, self.options.device, memory,
            self.options.checkpoint_seconds,
        )  # fmt: skip
        trained = await self._in_a_thread(job, work)
        if trained.weights is not None and target is not None:
            await self._unless_ended(work, self.gateway.upload(trained.weights, target))
        return trained

    async def _model(self, name: str, folder: Path) -> Path:
        unpacked = folder / "model"
        if not (folder / "model.ready").exists():
            archive = folder / "model.tar"
            await self.gateway.download(f"{self.gateway.url}/v1/models/{quote(name, safe='')}/download", archive)
            await asyncio.to_thread(models.unpack, archive, unpacked)
            archive.unlink()
            (folder / "model.ready").touch()
        return unpacked

    async def _unless_ended(self, work: Work, doing: Awaitable[T]) -> T:
        """What `doing` gives. Raises `Stopped` or `Left` as soon as the task ends."""
        running = asyncio.ensure_future(doing)
        await first(running, work.ended.wait())
        if work.control.ended:
            raise work.control.ended
        return await running

    async def _in_a_thread(self, job: Job, work: Work) -> Trained:
        loop = asyncio.get_running_loop()

        def tell(percent: float, metrics: dict[str, float]) -> None:
            loop.call_soon_threadsafe(self._progressed, job.task.key, percent, metrics)

        def note(text: str) -> None:
            loop.call_soon_threadsafe(self.say, text)

        return await asyncio.wrap_future(in_thread(lambda: train(job, work.control, tell, note)))

    def _progressed(self, key: str, percent: float, metrics: dict[str, float]) -> None:
        self._perform(self.session.progressed(key, percent, metrics))
        now = asyncio.get_running_loop().time()
        if now - self._said_at >= LINE_SECONDS:
            self._said_at = now
            loss, accuracy = metrics["loss"], metrics["accuracy"]
            self.say(f"{percent:.1f} %, loss {loss:.3f}, held-out accuracy {accuracy:.3f}")

    async def _let_go(self) -> None:
        self._steer("leave")
        if self.work and self.work.running:
            await asyncio.wait([self.work.running], timeout=GRACE_SECONDS)
