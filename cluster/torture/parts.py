"""The processes that are tortured: started, killed, stopped, and started again while nobody wants them dead."""

import asyncio
import contextlib
import json
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import psutil

from cluster.processes import belonging
from cluster.store import server
from cluster.torture.notes import CLOCK, Notes
from cluster.torture.part import TORTURE

LOOK_SECONDS = 0.05


class Part:
    """One process, and what it has to be started with."""

    def __init__(self, name: str, torture: dict[str, object]) -> None:
        self.name, self.torture = name, torture
        self.process: psutil.Process | None = None
        self.down_until = 0.0  # of time.monotonic
        self.shift = 0.0  # seconds by which its clock will step
        self.wanted_dead = True

    @property
    def alive(self) -> bool:
        """Whether it runs, or is stopped."""
        return self.process is not None and self.process.is_running()

    def signal(self, what: str) -> None:
        """ "kill", "suspend" or "resume" it; nothing for one that is gone. Never another process with its number."""
        if self.process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(self.process, what)()


class Parts:
    """All of them, and the nursery that forks them. `notes` has every start and every end."""

    def __init__(self, home: Path, environment: dict[str, str], notes: Notes) -> None:
        self.home, self.notes = home, notes
        own = {name: value for name, value in os.environ.items() if not name.startswith("VILLAGE_")}
        self.environment = own | environment
        self.parts: dict[str, Part] = {}
        self.nursery: Process | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start the nursery, and keep alive what is added from now on."""
        (self.home / "logs").mkdir(parents=True, exist_ok=True)
        self.nursery = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cluster.torture.part", stdin=PIPE, stdout=PIPE, env=self.environment,
            start_new_session=True,
        )  # fmt: skip
        self._keeping = asyncio.create_task(self._keep())

    def add(self, name: str, **torture: object) -> None:
        """A part that shall run."""
        self.parts[name] = Part(name, torture)

    def remove(self, name: str) -> None:
        """Kill it for good."""
        part = self.parts.pop(name)
        part.wanted_dead, part.down_until = True, float("inf")
        part.signal("kill")

    async def _keep(self) -> None:
        while True:
            for part in list(self.parts.values()):
                if part.alive:
                    continue
                if not part.wanted_dead:
                    self.notes.note("ended", part=part.name)
                    part.wanted_dead = True
                if time.monotonic() >= part.down_until:
                    await self._start(part)
            await asyncio.sleep(LOOK_SECONDS)

    async def _start(self, part: Part) -> None:
        assert self.nursery is not None and self.nursery.stdin is not None and self.nursery.stdout is not None
        environment = {TORTURE: json.dumps(part.torture), CLOCK: str(part.shift)}
        log = str(self.home / "logs" / f"{part.name}.log")
        line = json.dumps({"start": part.name, "environment": environment, "log": log})
        self.nursery.stdin.write(line.encode() + b"\n")
        pid = await self.nursery.stdout.readline()
        if not pid:
            raise RuntimeError("the nursery of the parts has ended")
        with contextlib.suppress(psutil.NoSuchProcess):
            part.process = psutil.Process(int(pid))
        part.wanted_dead = False
        self.notes.note("started", part=part.name, clock=part.shift)

    def kill(self, name: str, down_seconds: float, shift: float = 0.0) -> None:
        """Kill it, and have it start again then."""
        part = self.parts[name]
        part.down_until, part.shift = time.monotonic() + down_seconds, shift
        part.wanted_dead = True
        part.signal("kill")

    async def close(self) -> None:
        """End all of them, and whoever they may have left."""
        if self._keeping is not None:
            self._keeping.cancel()
        if self.nursery is not None and self.nursery.stdin is not None:
            self.nursery.stdin.close()
            await self.nursery.wait()
        for process in belonging(self.home):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


class Redis:
    """The store's server, over one append-only file."""

    def __init__(self, home: Path, socket: Path) -> None:
        self.home, self.socket = home, socket
        self.process: psutil.Popen | None = None
        self.lock = asyncio.Lock()

    def start(self) -> None:
        """Start it, or start it again."""
        self.process = server.start(self.home / "redis", self.socket, log=self.home / "redis.log")  # type: ignore[assignment]

    def kill(self) -> None:
        """As a power cut would, but for the kernel."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def signal(self, number: int) -> None:
        """Stop it, or let it go on."""
        assert self.process is not None
        self.process.send_signal(number)
