"""A whole village for the session: `village up` as a person would run it, in a home of its own, on free ports."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

VILLAGE = str(Path(sys.executable).parent / "village")
START_SECONDS = 180.0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@dataclass
class Running:
    """A village that was started here."""

    home: Path
    environment: dict[str, str]
    url: str
    process: subprocess.Popen[bytes] | None = None
    _token: str = field(default="", repr=False)

    def start(self) -> "Running":
        """`village up`, until it is ready."""
        with open(self.home / "up.log", "ab") as out:
            self.process = subprocess.Popen(
                [VILLAGE, "up"], env=self.environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.until(lambda: httpx.get(f"{self.url}/readiness").json()["ready"], START_SECONDS, "ready")
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it as Ctrl-C or a service manager would; its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def run(self, *arguments: str, seconds: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
        """A `village` command."""
        return subprocess.run(
            [VILLAGE, *arguments], env=self.environment, capture_output=True, text=True, timeout=seconds, check=False,
            **options,
        )  # fmt: skip

    def until(self, look: Callable[[], Any], seconds: float, what: str) -> Any:
        """Ask until the answer is true; whatever fails on the way is asked again."""
        end, last = time.monotonic() + seconds, None
        while time.monotonic() < end:
            if self.process is not None and self.process.poll() is not None:
                break
            try:
                if found := look():
                    return found
            except Exception as error:
                last = error
            self.pause()
        log = (self.home / "up.log").read_text()[-2000:]
        raise AssertionError(f"not {what} within {seconds:.0f} s; last {last!r}; up said:\n{log}")

    @staticmethod
    def pause(seconds: float = 0.2) -> None:
        """Between two looks."""
        signal.sigtimedwait([], seconds)

    @property
    def headers(self) -> dict[str, str]:
        """The admin's."""
        if not self._token:
            kept = json.loads((self.home / "admin.json").read_text())
            body = {"username": kept["username"], "password": kept["password"]}
            self._token = httpx.post(f"{self.url}/auth/token", json=body, timeout=30).json()["access_token"]
        return {"Authorization": f"Bearer {self._token}"}

    def get(self, path: str, **query: Any) -> Any:
        """The decoded answer, the envelope's `data` where there is one."""
        return data(self._ask("GET", path, params=query, timeout=60))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """See `get`."""
        return data(self._ask("POST", path, json=body, timeout=120))

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """As a good client: one request too many is asked again when the answer says so."""
        answer = httpx.request(method, self.url + path, headers=self.headers, **options)
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            self.pause(float(answer.headers["Retry-After"]))
            answer = httpx.request(method, self.url + path, headers=self.headers, **options)
        return answer

    def processes(self) -> list[psutil.Process]:
        """Everything that works for this village, `up` itself not."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("VILLAGE_HOME") == str(self.home) and process.pid != os.getpid():
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return [process for process in found if self.process is None or process.pid != self.process.pid]

    def pids(self, sign: str) -> list[int]:
        """Processes whose title contains the sign."""
        found = []
        for process in self.processes():
            try:
                if sign in " ".join(process.cmdline()):
                    found.append(process.pid)
            except psutil.NoSuchProcess:
                continue
        return found

    def kill(self, sign: str) -> list[int]:
        """kill -9 them."""
        pids = self.pids(sign)
        assert pids, f"nothing called {sign} runs"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return pids


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A journey waits for a whole village, and the first one for the seedling too."""
    for item in items:
        if "/e2e/" in str(item.path):
            item.add_marker(pytest.mark.timeout(900))


def data(answer: httpx.Response) -> Any:
    """The content of a good answer."""
    answer.raise_for_status()
    content = answer.json()
    return content["data"] if isinstance(content, dict) and content.get("success") is True else content


@pytest.fixture(scope="session")
def village() -> Iterator[Running]:
    """One village for all tests of this folder."""
    with tempfile.TemporaryDirectory(prefix="village-e2e-") as name:
        home = Path(name).resolve()
        gateway, farm, dashboard, ray = free_ports(4)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("VILLAGE_", "RAY_"))}
        environment = clean | {
            "VILLAGE_HOME": str(home), "VILLAGE_PORT": str(gateway), "VILLAGE_FARM_PORT": str(farm),
            "VILLAGE_DASHBOARD_PORT": str(dashboard), "VILLAGE_RAY_PORT": str(ray),
        }  # fmt: skip
        running = Running(home, environment, f"http://127.0.0.1:{gateway}")
        try:
            yield running.start()
        finally:
            if running.process is not None and running.process.poll() is None:
                running.stop()
