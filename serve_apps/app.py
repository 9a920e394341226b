"""The Serve deployments, as configs/serve.yaml imports them. Shells: each builds plain parts from Settings."""

import logging

from ray import serve
from starlette.types import ASGIApp

from cluster.settings import Settings
from serve_apps.compose import build_core
from serve_apps.gateway import build_gateway
from serve_apps.listener import Listener

log = logging.getLogger("village.app")


@serve.deployment(
    num_replicas=1, ray_actor_options={"num_cpus": 0}, health_check_period_s=2, health_check_timeout_s=10,
    graceful_shutdown_timeout_s=10, graceful_shutdown_wait_loop_s=0.5,
)  # fmt: skip
class GatewayReplica:
    """The gateway behind the front door; it has no engine and reaches those that have one."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.listener = Listener(self.settings, "gateway", self._build).start()

    async def _build(self) -> ASGIApp:
        return build_gateway(build_core(self.settings))

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        await self.listener.check()

    def __del__(self) -> None:
        self.listener.stop()


gateway = GatewayReplica.bind()
