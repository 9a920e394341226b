import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from eventually import eventually

from cluster import processes
from cluster.processes import AlreadyUp, Child

FOREVER = [sys.executable, "-c", "import threading; threading.Event().wait()"]
DEAF = (
    "import signal, threading; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); threading.Event().wait()"
)
STUBBORN = [sys.executable, "-c", DEAF]


def child(tmp_path: Path, command: list[str]) -> Child:
    return Child("it", lambda: command, os.environ, tmp_path / "logs" / "it.log")


async def test_a_dead_child_is_started_again(tmp_path: Path):
    made = child(tmp_path, FOREVER)
    assert not made.alive
    made.start()
    first = made.process
    assert made.alive and made.revive() is False and first is not None
    first.kill()
    first.wait()
    assert made.revive() is True and made.alive and made.process is not first and made.restarts == 1
    made.stop()
    assert not made.alive
    made.stop()


async def test_a_child_that_dies_of_its_start_is_started_ever_less_often(tmp_path: Path, monkeypatch):
    made = child(tmp_path, [sys.executable, "-c", "raise SystemExit('no')"])
    now = 1000.0
    monkeypatch.setattr(processes.time, "monotonic", lambda: now)
    made.start()
    pauses = []
    for _ in range(8):
        assert made.process is not None
        made.process.wait()
        begun = now
        while not made.revive():
            now += 0.05
        pauses.append(round(now - begun, 1))
    assert pauses == sorted(pauses) and pauses[0] == 0 and pauses[-1] == pytest.approx(10, abs=0.2)
    assert made.process is not None
    made.process.wait()
    now += 60  # as if it had lived
    assert made.revive() and made.pause == 0.25
    assert "no" in (tmp_path / "logs" / "it.log").read_text()


async def test_a_child_that_does_not_listen_is_killed(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    made = child(tmp_path, STUBBORN)
    made.start()
    await eventually(lambda: "deaf" in (tmp_path / "logs" / "it.log").read_text())
    made.stop()
    assert not made.alive


def test_one_village_per_home(tmp_path: Path):
    path = tmp_path / "run" / "village.lock"
    assert processes.holder(path) is None
    held = processes.lock(path, {"url": "http://127.0.0.1:1"})
    assert processes.holder(path) == {"pid": os.getpid(), "url": "http://127.0.0.1:1"}
    with pytest.raises(AlreadyUp, match="127"):
        processes.lock(path, {"url": "http://127.0.0.1:2"})
    held.close()
    assert processes.holder(path) is None
    processes.lock(path, {"url": "http://127.0.0.1:2"}).close()


def test_a_port_is_free_or_not():
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        assert not processes.free_port("127.0.0.1", port)
    assert processes.free_port("127.0.0.1", port)


def test_a_sweep_ends_what_works_for_this_home_and_nothing_else(tmp_path: Path):
    def start(home: str, mark: str = "1") -> subprocess.Popen[bytes]:
        environment = {**os.environ, "VILLAGE_HOME": home, "VILLAGE_CHILD": mark}
        return subprocess.Popen(FOREVER, env=environment, stdin=subprocess.PIPE)

    ours, spared = start(str(tmp_path)), start(str(tmp_path))
    others = [start(str(tmp_path / "other")), start(str(tmp_path), "")]
    try:
        assert processes.sweep(tmp_path, [spared.pid]) == 1
        assert ours.poll() is not None and spared.poll() is None and all(other.poll() is None for other in others)
        assert processes.sweep(tmp_path) == 1
    finally:
        for process in (ours, spared, *others):
            process.kill()
            process.wait()
