"""The village on this machine, from `up` to the signal that ends it.

The supervisor keeps no state and imports no Ray: it starts redis-server, `ray start --head` and HAProxy, runs the
deployment (`python -m cluster.runtime`) once, and then only watches. What dies is started again; what is inside Ray,
Ray restarts.
"""

import asyncio
import contextlib
import hashlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from cluster import front, processes
from cluster.errors import Unavailable, VillageError
from cluster.identity.admin import ensure_admin
from cluster.identity.service import Identity
from cluster.processes import Child
from cluster.settings import Settings
from cluster.store import Store, server

WATCH_SECONDS = 0.25
READY_SECONDS = 300.0
RAYS_OWN_PORTS = range(10_002, 20_000)  # Ray refuses to start where one of its services asks for a worker's port
Say = Callable[[str], None]


class CannotStart(VillageError):
    """The village cannot start here; the message says in one line why, and what would help."""


def lock_path(settings: Settings) -> Path:
    """Whoever holds it is the village of this home."""
    return settings.run_dir / "village.lock"


def child_environment(settings: Settings) -> dict[str, str]:
    """The environment of every process of the village."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VILLAGE_ADMIN")}
    environment |= settings.environment() | {
        "VILLAGE_CHILD": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # Ray would copy the project into every worker
        "RAY_ADDRESS": settings.ray,
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # Ray's 0.1 costs a laptop 3 % of a core for nothing
        "PYTHONUNBUFFERED": "1",
    }
    if not settings.ray_address:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(settings.home / "ray-token")}
    if settings.profile == "dev" and not settings.ray_address:
        # Despite its name, this is what makes Ray take 127.0.0.1 as the node's address, on Linux too. Every port of
        # Ray is then on loopback alone.
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return environment


class Village:
    """One machine's share of the village, from `up` to the signal that ends it."""

    def __init__(self, settings: Settings, say: Say = print) -> None:
        self.settings, self.say = settings, say
        self.environment = child_environment(settings)
        self.stopping = threading.Event()
        self.logs = settings.home / "logs"
        self.children: list[Child] = []
        self.deployment: subprocess.Popen[bytes] | None = None

    def up(self) -> int:
        """Run until SIGTERM or SIGINT. Raises `CannotStart`, `AlreadyUp`."""
        begun = time.monotonic()
        settings = self.settings
        settings.home.mkdir(parents=True, exist_ok=True)
        held = processes.lock(lock_path(settings), {"url": settings.url, "home": str(settings.home)})
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self.stopping.set())
        if swept := processes.sweep(settings.home):
            self.say(f"ended {swept} processes that a killed village had left")
        try:
            self._check_ports()
            self._start(begun)
            self._watch()
        finally:
            self.down()
            held.close()
        return 0

    def _check_ports(self) -> None:
        s = self.settings
        wanted = {"VILLAGE_PORT": (s.host, s.port), "VILLAGE_FARM_PORT": (s.host, s.farm_port)}
        if not s.ray_address:
            wanted |= {"VILLAGE_RAY_PORT": ("127.0.0.1", s.ray_port)}
            wanted |= {"VILLAGE_DASHBOARD_PORT": ("127.0.0.1", s.dashboard_port)}
            if s.ray_port in RAYS_OWN_PORTS:
                raise CannotStart(f"VILLAGE_RAY_PORT {s.ray_port} is among the ports of Ray's workers; take another")
        for variable, (host, port) in wanted.items():
            if not processes.free_port(host, port):
                raise CannotStart(f"port {port} on {host} is in use; free it, or set {variable} to another")

    def _start(self, begun: float) -> None:
        settings = self.settings
        if settings.embedded_redis:
            self._child("redis", self._redis_command)
            threading.Thread(target=self._flush, daemon=True).start()
        asyncio.run(self._prepare_store())
        if not settings.ray_address:
            token = settings.home / "ray-token"
            if not token.exists():  # whole or not at all: an empty one would keep Ray out for ever
                fresh = token.with_suffix(".new")
                fresh.touch(mode=0o600)
                fresh.write_text(secrets.token_hex(32))
                fresh.replace(token)
            ray = self._child("ray", self._ray_command)
            ray.after_start.append(self._deploy)
        self._child("front", lambda: front.command(settings))
        self._deploy()
        self.say(f"starting at {settings.url} (state in {settings.home}, logs in {self.logs})")
        threading.Thread(target=self._announce, args=(begun,), daemon=True).start()

    def _child(self, name: str, command: Callable[[], Any]) -> Child:
        child = Child(name, command, self.environment, self.logs / f"{name}.log")
        self.children.append(child)
        child.start()
        return child

    def _redis_command(self) -> Any:
        socket = self.settings.run_dir / "redis.sock"
        directory = self.settings.home / "redis"
        directory.mkdir(parents=True, exist_ok=True)
        return server.command(directory, socket, self.settings.redis_fsync)

    def _flush(self) -> None:
        # A disk that is full or gone is Redis's to report: it refuses writes then.
        while self.settings.redis_fsync == "everysec" and not self.stopping.wait(1.0):
            with contextlib.suppress(OSError):
                server.flush(self.settings.home / "redis")

    def _ray_command(self) -> list[str]:
        # Shells of a former Ray would keep its ports and sockets: none may be left when a new one starts.
        spare = [child.process.pid for child in self.children if child.process and child.name != "ray"]
        processes.sweep(self.settings.home, spare)
        return [
            str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats",
            f"--port={self.settings.ray_port}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.settings.dashboard_port}", f"--temp-dir={ray_folder(self.settings)}",
            f"--object-store-memory={256 << 20}",
            # Its default is one fixed port: a second village on this machine would have no job server.
            "--dashboard-agent-listen-port=0",
        ]  # fmt: skip

    async def _prepare_store(self) -> None:
        store = Store(self.settings.redis)
        deadline = time.monotonic() + 20
        while True:
            try:
                await store.ping()
                break
            except Unavailable as error:
                if time.monotonic() > deadline or not self.settings.embedded_redis:
                    raise CannotStart(
                        f"Redis does not answer at {self.settings.redis}; see VILLAGE_REDIS_URL"
                    ) from error
                await asyncio.sleep(0.05)
        made = await ensure_admin(Identity(store), self.settings)
        if made:
            self.say(f"sign in as {self.settings.admin_username}; the password is in {made}")
        await store.close()

    def _deploy(self) -> None:
        with open(self.logs / "deployment.log", "ab") as out:
            self.deployment = subprocess.Popen(
                [sys.executable, "-m", "cluster.runtime"], env=self.environment, stdout=out, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def _announce(self, begun: float) -> None:
        ready = False
        while not ready and not self.stopping.wait(0.25) and time.monotonic() - begun < READY_SECONDS:
            ready = readiness(self.settings).get("ready", False)
        if ready:
            self.say(f"ready after {time.monotonic() - begun:.1f} s. Ctrl-C, or `village down`, ends it.")
        elif not self.stopping.is_set():
            self.say(f"not ready after {READY_SECONDS:.0f} s: `village status` and {self.logs} say more")

    def _watch(self) -> None:
        while not self.stopping.wait(WATCH_SECONDS):
            for child in self.children:
                if child.revive():
                    self.say(f"{child.name} had ended; started it again")
                    for action in child.after_start:
                        action()
            if self.deployment is not None and (code := self.deployment.poll()) is not None:
                self.deployment = None
                if code == os.EX_CONFIG:
                    raise CannotStart(last_line(self.logs / "deployment.log"))
                if code != 0:
                    self.say(f"the deployment failed ({last_line(self.logs / 'deployment.log')}); trying again")
                    self._deploy()

    def down(self) -> None:
        """End everything: the door first, the store last, and nothing is left."""
        self.stopping.set()
        if self.deployment is not None and self.deployment.poll() is None:
            self.deployment.kill()
        by_name = {child.name: child for child in self.children}
        if door := by_name.get("front"):
            door.stop()
        if self.settings.ray_address:
            remove_from_ray(self.environment)
        redis = by_name.get("redis")
        processes.sweep(self.settings.home, [redis.process.pid] if redis and redis.process else [])
        if redis:
            redis.stop()


def end(settings: Settings, say: Say = print) -> int:
    """Ask the village of this home to end, wait for it, and clear up after one that was killed."""
    other = processes.holder(lock_path(settings))
    if other is not None:
        os.kill(other["pid"], signal.SIGTERM)
        try:
            psutil.Process(other["pid"]).wait(30)
        except psutil.NoSuchProcess:
            pass
        except psutil.TimeoutExpired:
            say(f"process {other['pid']} does not end; killing it")
            os.kill(other["pid"], signal.SIGKILL)
    left = processes.sweep(settings.home)
    say("the village is down" if other or left else "no village is up here")
    return 0


def ray_folder(settings: Settings) -> str:
    """Ray's session folder: its socket paths are long, so it cannot lie in the home."""
    return f"/tmp/village-ray-{hashlib.sha256(str(settings.home).encode()).hexdigest()[:12]}"


def last_line(path: Path) -> str:
    """The last line of a log that says anything."""
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else "no message"


def readiness(settings: Settings) -> dict[str, Any]:
    """What `/readiness` says; empty while nobody answers."""
    return asked(settings, "/readiness")


def asked(settings: Settings, page: str) -> dict[str, Any]:
    """What an open page of the gateway says; empty while nobody answers."""
    try:
        return httpx.get(f"{settings.url}{page}", timeout=3).json()
    except (httpx.HTTPError, ValueError):
        return {}


def remove_from_ray(environment: dict[str, str]) -> None:
    """Take our applications and actors out of a cluster that is not ours."""
    subprocess.run([sys.executable, "-m", "cluster.runtime", "remove"], env=environment, check=False, timeout=60)
