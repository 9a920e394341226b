"""What the health pages say was measured, not that an object exists; and it comes in time, whatever is away."""

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from eventually import eventually
from http_harness import Client

from cluster.presence import LATE_SECONDS, STALE_SECONDS, beat
from cluster.store import Store, server
from serve_apps.core import Core
from serve_apps.kit import machine, readiness
from serve_apps.kit.census import Census
from serve_apps.kit.fresh import Fresh
from serve_apps.kit.readiness import Readiness, State, heartbeat, judged, overall, reachable

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
PAGES = ("/healthz", "/health", "/readiness")


async def gone() -> bool:
    return False


async def fine() -> bool:
    return True


class Watch:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask at each look, so that no test waits for a second to pass."""
    asked = Fresh.__init__
    monkeypatch.setattr(Fresh, "__init__", lambda self, find, seconds=1.0: asked(self, find, 0.0))


async def test_a_service_without_a_sign_of_life_is_not_said_to_run(client: Client, core: Core):
    core.chat = object()
    said = (await client.get("/healthz")).json()
    assert said["status"] == "healthy" and said["services"]["chat"]["status"] == "running"
    core.readiness = Readiness({"chat": gone})
    said = (await client.get("/healthz")).json()
    assert said["status"] == "degraded"
    assert said["services"]["chat"] == {"status": "away", "available": False}
    assert said["services"]["p2p_fog"] == {"status": "absent", "available": False}


async def test_what_is_not_ready_is_named(client: Client, core: Core):
    async def away() -> bool:
        raise ConnectionError("redis://somebody:secret@host")

    core.readiness.probes["router"] = away
    answer = await client.get("/readiness")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "checks": {"store": True, "router": False}})
    health = (await client.get("/health")).json()
    assert health["components"] == {"store": "healthy", "router": "unhealthy"}
    assert health["checks"] == {"store": True, "router": False}
    assert health["details"]["router"]["error"] == "ConnectionError" and "secret" not in str(health)
    assert health["details"]["store"]["latency_ms"] > 0
    assert {"version", "uptime", "timestamp", "cpu", "memory"} <= health.keys()


@pytest.mark.parametrize(
    ("away", "village"),
    [((), "healthy"), (("chat",), "degraded"), (("router",), "unhealthy"), (("redis",), "unhealthy")],
)
async def test_the_village_is_unhealthy_without_what_everything_needs_and_degraded_without_the_rest(
    client: Client, core: Core, away: tuple[str, ...], village: str
):
    core.readiness = Readiness({name: gone if name in away else fine for name in ("redis", "router", "chat")})
    assert (await client.get("/health")).json()["status"] == village
    assert (await client.get("/healthz")).json()["status"] == village
    assert (await client.get("/readiness")).status_code == (503 if away else 200)


async def test_the_router_is_away_once_its_last_beat_is_stale_and_back_with_the_next(
    client: Client, core: Core, store: Store, always
):
    clock = Watch()
    core.readiness = Readiness({"redis": reachable(store), "router": heartbeat(store, "router", clock)})
    assert (await client.get("/readiness")).status_code == 503  # it never gave one
    await beat(store, "router", clock.now)
    assert (await client.get("/readiness")).json() == {"ready": True, "checks": {"redis": True, "router": True}}
    clock.now += timedelta(seconds=LATE_SECONDS + 0.5)
    health = (await client.get("/health")).json()
    assert (health["status"], health["components"]["router"]) == ("degraded", "degraded")
    assert health["details"]["router"]["last_beat_seconds"] == LATE_SECONDS + 0.5
    assert (await client.get("/readiness")).status_code == 200
    clock.now = NOON + timedelta(seconds=STALE_SECONDS)
    assert (await client.get("/readiness")).status_code == 503
    assert (await client.get("/health")).json()["status"] == "unhealthy"
    await beat(store, "router", clock.now)
    assert (await client.get("/readiness")).status_code == 200


def test_an_answer_that_takes_long_is_degraded():
    assert judged(True, 0.01).state is State.HEALTHY
    assert judged(True, readiness.SLOW_SECONDS + 0.1).state is State.DEGRADED
    assert judged(False, 0.01).state is State.UNHEALTHY
    assert overall({}) is State.HEALTHY
    assert overall({"chat": judged(True, 2.0)}) is State.DEGRADED


async def test_a_part_is_asked_once_however_many_want_to_know():
    asked = 0

    async def probe() -> bool:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return True

    found = Readiness({"part": probe})
    await asyncio.gather(*(found.checks() for _ in range(50)))
    assert asked == 1


async def test_parts_are_asked_at_once_and_each_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readiness, "TIMEOUT_SECONDS", 0.1)

    async def hangs() -> bool:
        await asyncio.Event().wait()
        return True

    begun = asyncio.get_running_loop().time()
    report = await Readiness({f"part{n}": hangs for n in range(20)} | {"good": fine}).report()
    assert asyncio.get_running_loop().time() - begun < 1
    assert report.pop("good").ready and not any(check.ready for check in report.values())
    assert report["part0"].error == "no answer within 0.1 s"


@pytest.fixture
async def pausable(tmp_path: Path) -> AsyncIterator[tuple[subprocess.Popen[bytes], Store]]:
    """A redis-server of this test's own, which it may stop."""
    process = server.start(tmp_path / "redis", tmp_path / "redis.sock")
    store = Store(f"unix://{tmp_path}/redis.sock")

    async def answers() -> bool:
        try:
            return await store.ping() >= 0
        except Exception:
            return False

    await eventually(answers, within=10)
    yield process, store
    process.send_signal(signal.SIGCONT)
    await store.close()
    process.kill()
    process.wait()


async def test_a_redis_that_does_not_answer_makes_no_page_hang_and_readiness_comes_back_with_it(
    client: Client, core: Core, pausable: tuple[subprocess.Popen[bytes], Store]
):
    process, store = pausable
    core.readiness = Readiness({"redis": reachable(store), "router": heartbeat(store, "router", lambda: NOON)})
    core.census = Census(store, core.metrics, core.clock)
    await beat(store, "router", NOON)
    process.send_signal(signal.SIGSTOP)
    clock = asyncio.get_running_loop().time
    begun = clock()
    healthz, health, ready, metrics = await asyncio.gather(*(client.get(page) for page in (*PAGES, "/metrics")))
    assert clock() - begun < 3
    assert healthz.status_code == 200 and healthz.json()["status"] == "unhealthy"
    assert health.status_code == 200 and health.json()["status"] == "unhealthy"
    assert (ready.status_code, ready.json()["checks"]) == (503, {"redis": False, "router": False})
    assert "village_store_up 0.0" in metrics.text and "village_tasks{" not in metrics.text
    assert "village_scrape_errors_total 1.0" in metrics.text and "http_requests_total" in metrics.text
    process.send_signal(signal.SIGCONT)

    async def back() -> bool:
        counted = (await client.get("/metrics")).text
        return (await client.get("/readiness")).status_code == 200 and "village_store_up 1.0" in counted

    await eventually(back, within=10)


async def test_status_tells_what_the_machine_has(client: Client, core: Core, admin):
    said = (await client.get("/status", headers=admin)).json()
    assert said["healthy"] is True and said["cpu"]["cores"] >= 1 and said["runningJobs"] == 0
    assert said["memory"]["total"] > said["memory"]["used"] > 1 << 20
    assert said["ollama"] == {"status": "absent", "version": None, "modelsLoaded": []}
    assert said["vllm"] == {"status": "away", "modelsLoaded": []}
    assert (await client.get("/status")).status_code == 401


def test_a_gpu_is_read_off_the_driver_and_what_it_does_not_tell_is_null():
    assert machine.gpu_of("NVIDIA H200, 4512, 143771, 37, 45\n") == {
        "name": "NVIDIA H200", "memoryUsed": 4512 << 20, "memoryTotal": 143771 << 20, "utilization": 37.0,
        "temperature": 45.0,
    }  # fmt: skip
    found = machine.gpu_of("Orin, [N/A], [N/A], [N/A], 45")
    assert found is not None and found["memoryTotal"] is None and found["temperature"] == 45.0
    assert machine.gpu_of("") is None and machine.gpu_of("No devices were found") is None
