"""A torture: a village of processes of its own, the load and the faults of a plan, and the history that they leave."""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
from aiohttp import web

from cluster.clock import utc_now
from cluster.egress import Egress
from cluster.errors import Unavailable
from cluster.events import Event
from cluster.identity.model import SYSTEM
from cluster.presence import Presence
from cluster.settings import Settings
from cluster.store import Store, Write
from cluster.torture.collecting import Waiting, collected
from cluster.torture.history import History
from cluster.torture.load import Load
from cluster.torture.notes import Notes
from cluster.torture.parts import Parts, Redis
from cluster.torture.plan import AgentPlan, Fault, Plan, workers
from cluster.webhooks.service import Webhooks
from cluster.workers.model import DEFAULT_TTL_SECONDS, PULL, Agent

START_SECONDS, SETTLE_SECONDS, LOOK_SECONDS = 30.0, 60.0, 0.1
Say = Callable[[str], None]


class Ports:
    """Free ports that stay ours: bound all the time, or an outgoing connection would get one while its part is dead."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []

    def take(self) -> int:
        """One more. Whoever listens on it says SO_REUSEPORT, too."""
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(("127.0.0.1", 0))
        self.sockets.append(made)
        return made.getsockname()[1]

    def close(self) -> None:
        """Give them back."""
        for each in self.sockets:
            each.close()


class World:
    """One village in one folder, for one plan."""

    def __init__(self, plan: Plan, home: Path, say: Say = lambda _: None) -> None:
        self.plan, self.home, self.say = plan, home.resolve(), say
        self.free = Ports()
        self.settings = Settings(home=home, port=self.free.take(), redis_url="", profile="dev")
        self.redis = Redis(self.home, self.settings.run_dir / "redis.sock")
        self.store = Store(self.settings.redis)
        self.notes = Notes(self.home / "notes", "world")
        environment = {
            "VILLAGE_HOME": str(self.home), "VILLAGE_PORT": str(self.settings.port), "VILLAGE_CHILD": "1"
        }  # fmt: skip
        self.parts = Parts(self.home, environment, self.notes)
        self.hook_since = ""
        self.stack = contextlib.AsyncExitStack()

    async def run(self) -> History:
        """From nothing to the history; whatever was started is gone afterwards."""
        async with self.stack:
            await self._open()
            self.say("the village is up")
            load = Load(self.plan, self.settings.url, self.store, self.notes)
            self.stack.push_async_callback(load.close)
            await asyncio.gather(load.run(), *(self._strike(fault) for fault in self.plan.faults))
            self.say("the faults are over")
            await self._heal()
            await load.end()
            unsettled = await Waiting(self.store, self.home, self.hook_since).settled(SETTLE_SECONDS)
            await self.parts.close()
            history = await collected(self.plan, self.store, self.home)
            history.hook_since, history.unsettled = self.hook_since, unsettled
            return history

    # ---- beginning

    async def _open(self) -> None:
        self.stack.callback(self.free.close)
        self.redis.start()
        self.stack.callback(self.redis.kill)
        self.stack.push_async_callback(self.store.close)
        await self._until(self._pong)
        await self._register()
        await self._hook()
        self.stack.push_async_callback(self.parts.close)
        await self.parts.open()
        self._add(well=False)
        await self._until(self._routes)

    def _add(self, well: bool) -> None:
        torture: dict[str, object] = {"seed": self.plan.seed, "well": well}
        for name in ("router", "ledger", "stream", "gate-0", "gate-1"):
            self.parts.add(name)
        for number in range(workers(self.plan)):
            self.parts.add(f"worker-{number}", **torture)
        for agent in self.plan.agents:
            if agent.way != "pool":
                self.parts.add(agent.name, **torture, room=agent.room, port=self.ports.get(agent.name, 0))

    async def _register(self) -> None:
        self.ports = {agent.name: self.free.take() for agent in self.plan.agents if agent.way == "push"}
        at = utc_now()
        for planned in self.plan.agents:
            agent = Agent(
                agent_id=planned.name, owner=SYSTEM.owner, display_name=planned.name, public_key="", created_at=at,
                endpoint=self._endpoint(planned), tags=planned.tags, max_concurrent_tasks=planned.room, last_seen_at=at,
                ttl_seconds=DEFAULT_TTL_SECONDS,
            )  # fmt: skip
            event = Event(kind="agent.registered", subject=agent.agent_id, owner=agent.owner, at=at)
            await self.store.commit(Write(None, agent, event=event))

    def _endpoint(self, agent: AgentPlan) -> str:
        return f"http://127.0.0.1:{self.ports[agent.name]}/" if agent.way == "push" else PULL

    async def _hook(self) -> None:
        """A webhook for everything, and its receiver, here."""

        async def receive(request: web.Request) -> web.Response:
            self.notes.note("received", event_id=(await request.json())["event_id"])
            return web.Response()

        app = web.Application()
        app.router.add_post("/", receive)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        self.stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        egress = Egress(public_only=False)
        self.stack.push_async_callback(egress.close)
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        hook, _ = await Webhooks(self.store, egress).create(SYSTEM, url=url, filters=["*"], all_owners=True)
        self.hook_since = hook.since

    async def _pong(self) -> bool:
        return await self.store.ping() > 0

    async def _routes(self) -> bool:
        """Whether every part has said that it lives, or answers."""
        names = ("router", "ledger", "audit", "webhooks", "chains", "schedules")
        if len(await self.store.many(Presence, names)) < len(names):
            return False
        async with aiohttp.ClientSession() as session, session.get(self.settings.url) as answer:
            return answer.status == 404

    async def _until(self, there: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(Unavailable, aiohttp.ClientError):
                if await there():
                    return
            if time.monotonic() > deadline:
                raise RuntimeError(f"not up within {START_SECONDS:g} s: see {self.home / 'logs'}")
            await asyncio.sleep(LOOK_SECONDS)

    # ---- faults

    async def _strike(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at)
        self.notes.note("fault", fault=fault.what, part=fault.part, value=fault.value)
        if fault.part == "redis":
            await self._strike_redis(fault)
        elif fault.what == "stop":
            part = self.parts.parts[fault.part]
            part.signal("suspend")
            await asyncio.sleep(fault.value)
            part.signal("resume")
        elif fault.what == "twin":  # as when the first was taken for dead, and is not
            twin = f"{fault.part}-{fault.at:.3f}"
            self.parts.add(twin)
            await asyncio.sleep(fault.value)
            self.parts.remove(twin)
        elif fault.what == "clock":
            self.parts.kill(fault.part, 0.0, shift=fault.value)
        else:
            self.parts.kill(fault.part, fault.value)

    async def _strike_redis(self, fault: Fault) -> None:
        async with self.redis.lock:  # one thing at a time: who is dead cannot be stopped
            if fault.what == "redis kill":
                self.redis.kill()
                await asyncio.sleep(fault.value)
                self.redis.start()
            else:
                self.redis.signal(signal.SIGSTOP)
                await asyncio.sleep(fault.value)
                self.redis.signal(signal.SIGCONT)

    async def _heal(self) -> None:
        """Everybody runs, with the right time, and does what is asked. What agents still owe, they owe for ever."""
        for part in self.parts.parts.values():
            part.signal("resume")
            if "well" in part.torture:
                part.torture = part.torture | {"well": True}
            if part.shift or "well" in part.torture:
                self.parts.kill(part.name, 0.0)
            part.down_until = 0.0
        self.notes.note("healed")


async def torture(plan: Plan, home: Path, say: Say = lambda _: None) -> History:
    """Run it."""
    return await World(plan, home, say).run()
