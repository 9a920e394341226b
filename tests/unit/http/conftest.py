"""A gateway in this process, over a real Redis: what every test of an endpoint needs."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from http_harness import ADMIN, ADMIN_SCOPES, PASSWORD, QUICK, Client, roomy

from cluster.audit.archive import Archive
from cluster.audit.service import Audit
from cluster.egress import Egress
from cluster.identity.passwords import Passwords
from cluster.identity.service import Identity
from cluster.limits.limiter import Limiter
from cluster.settings import Settings
from cluster.store import Store
from cluster.webhooks.service import Webhooks
from serve_apps.core import Core
from serve_apps.gateway import Gateway, build_gateway
from serve_apps.kit.hub import Hub
from serve_apps.kit.readiness import Readiness, reachable


@pytest.fixture
async def core(store: Store, tmp_path: Path) -> AsyncIterator[Core]:
    """Identity, limits, readiness and events; a test that needs a domain service sets it."""
    settings = Settings(home=tmp_path, redis_url=store.url)
    made = Core(
        settings=settings,
        store=store,
        identity=Identity(store, passwords=Passwords(QUICK)),
        limiter=Limiter(store.url, roomy()),
        hub=Hub(store),
        readiness=Readiness({"store": reachable(store)}),
        audit=Audit(store, Archive(tmp_path / "audit")),
        webhooks=Webhooks(store, Egress(public_only=False)),
    )
    await made.start()
    await made.identity.create_user(ADMIN, PASSWORD, ADMIN_SCOPES, "enterprise")
    yield made
    await made.identity.settled()
    await made.usage.close()
    await made.audit.close()
    await made.webhooks.close()
    await made.waits.close()
    await made.connections.close()
    await made.hub.close()
    await made.limiter.close()


@pytest.fixture
def gateway(core: Core) -> Gateway:
    """The app of one replica."""
    return build_gateway(core)


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[Client]:
    """Somebody without a credential."""
    transport = httpx.ASGITransport(gateway, client=("192.0.2.1", 1), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://village") as http:
        yield http


@pytest.fixture
async def admin(core: Core) -> dict[str, str]:
    """An admin's headers."""
    return {"Authorization": f"Bearer {(await core.identity.token(ADMIN, PASSWORD)).access_token}"}


@pytest.fixture
def user(core: Core) -> Callable[..., object]:
    """`await user("ann", scopes)` -> the headers of a new user."""

    async def make(name: str = "ann", scopes: frozenset[str] = frozenset({"read", "write"})) -> dict[str, str]:
        await core.identity.create_user(name, PASSWORD, scopes)
        return {"Authorization": f"Bearer {(await core.identity.token(name, PASSWORD)).access_token}"}

    return make
