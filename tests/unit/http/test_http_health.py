"""What the health pages say was measured, not that an object exists."""

from http_harness import Client

from serve_apps.core import Core
from serve_apps.kit.readiness import Readiness


async def gone() -> bool:
    return False


async def test_a_service_without_a_sign_of_life_is_not_said_to_run(client: Client, core: Core):
    core.chat = object()
    said = (await client.get("/healthz")).json()
    assert said["status"] == "healthy" and said["services"]["chat"]["status"] == "running"
    core.readiness = Readiness({"chat": gone})
    said = (await client.get("/healthz")).json()
    assert said["status"] == "degraded"
    assert said["services"]["chat"] == {"status": "away", "available": False}
