"""A newcomer's first ten minutes, against a village that `village up` started."""

import subprocess
import sys
from pathlib import Path

import httpx
import psutil
from conftest import Running

ROOT = Path(__file__).resolve().parent.parent.parent


def test_nothing_listens_beyond_loopback(village: Running) -> None:
    mine = {process.pid for process in village.processes()}
    outside = [
        found for found in psutil.net_connections("tcp")
        if found.pid in mine and found.status == psutil.CONN_LISTEN and found.laddr
        and found.laddr.ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    ]  # fmt: skip
    assert not outside


def test_the_admins_password_is_for_their_eyes_alone(village: Running) -> None:
    assert (village.home / "admin.json").stat().st_mode & 0o777 == 0o600


def test_a_second_up_says_that_one_is_up(village: Running) -> None:
    again = village.run("up")
    assert again.returncode == 0
    assert village.url in again.stdout


def test_a_port_in_use_is_one_clear_line(village: Running, tmp_path: Path) -> None:
    other = Running(tmp_path, village.environment | {"VILLAGE_HOME": str(tmp_path)}, village.url)
    refused = other.run("up")
    assert refused.returncode == 1
    assert "is in use" in refused.stderr and "VILLAGE_PORT" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_a_redis_that_does_not_answer_is_one_clear_line(village: Running, tmp_path: Path) -> None:
    own = {"VILLAGE_HOME": str(tmp_path), "VILLAGE_REDIS_URL": "redis://127.0.0.1:1"}
    ports = {name: "0" for name in ("VILLAGE_PORT", "VILLAGE_FARM_PORT")}
    ports |= {"VILLAGE_RAY_PORT": "6399", "VILLAGE_DASHBOARD_PORT": "8299"}
    refused = Running(tmp_path, village.environment | own | ports, "").run("up")
    assert refused.returncode == 1
    assert "VILLAGE_REDIS_URL" in refused.stderr and len(refused.stderr.strip().splitlines()) == 1


def test_status_names_every_part_and_is_ready(village: Running) -> None:
    shown = village.run("status")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    for part in ("redis", "front door", "router", "trust ledger", "gateway", "chat", "knowledge", "forge"):
        assert part in shown.stdout
    assert shown.stdout.rstrip().endswith("ready")


def test_the_tour_succeeds(village: Running) -> None:
    toured = village.run("tour", "--steps", "30", seconds=420)
    assert toured.returncode == 0, toured.stdout + toured.stderr
    assert "5. A model is chatted with" in toured.stdout


def test_the_documents_examples_hold(village: Running) -> None:
    environment = village.environment | {"PYTHONPATH": "tests"}
    checked = subprocess.run(
        [sys.executable, "-m", "contract.conformance"], env=environment, capture_output=True, text=True, timeout=600,
        check=False, cwd=ROOT,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout[-4000:] + checked.stderr[-2000:]


def test_a_user_that_was_added_may_sign_in(village: Running) -> None:
    assert village.run("user", "add", "ann@village.local", input="a long pass phrase\n").returncode == 0
    token = village.run("token", "ann@village.local", input="a long pass phrase\n").stdout.strip()
    models = httpx.get(f"{village.url}/v1/models", headers={"Authorization": f"Bearer {token}"})
    assert models.status_code == 200


def test_the_farm_port_answers_and_asks_for_credentials(village: Running) -> None:
    farm = f"http://127.0.0.1:{village.environment['VILLAGE_FARM_PORT']}/api/tasks"
    assert httpx.get(farm).status_code == 401
    assert httpx.get(farm, headers=village.headers).json()["tasks"] == []


def test_the_merged_interface_description_covers_all_dialects(village: Running) -> None:
    tags = {tag["name"] for tag in httpx.get(f"{village.url}/openapi.json").json()["tags"]}
    assert len(tags) == 6
