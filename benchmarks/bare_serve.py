"""The peer of benchmarks/gateway.py: a FastAPI no-op on Ray Serve, behind each of three doors.

    python -m benchmarks.bare_serve classic|haproxy|socket PORT

`classic` is Serve's Python proxy, `haproxy` Ray's own HAProxy ingress, `socket` the arrangement of ours: uvicorn in
the replica on a Unix socket behind HAProxy with our configuration.
"""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any


def build() -> Any:
    """The app: one GET and one POST that validates a body of the size of a task."""
    from fastapi import FastAPI

    from serve_apps.dialects.ains.routes_tasks import Submission

    app = FastAPI()

    @app.get("/noop")
    async def noop() -> dict[str, str]:
        return {"status": "healthy"}

    @app.post("/noop", status_code=201)
    async def accept(body: Submission) -> dict[str, Any]:
        return {"task_id": "task_none", "status": "PENDING", "priority": body.priority}

    return app


def main() -> None:
    """Serve until killed."""
    door, port = sys.argv[1], int(sys.argv[2])
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    if door == "haproxy":
        os.environ |= {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2"}
    import ray
    from ray import serve

    ray.init(include_dashboard=False, log_to_driver=False, object_store_memory=256 << 20)
    if door == "socket":
        behind_front_door(serve, port)
    else:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        deployment = serve.deployment(num_replicas=1, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
        serve.run(deployment(serve.ingress(build)(type("Bare", (), {}))).bind(), route_prefix="/")
    print("ready", flush=True)
    threading.Event().wait()


def behind_front_door(serve: Any, port: int) -> None:
    """The same app in a replica with our listener, and HAProxy with our configuration."""
    from cluster import front
    from cluster.settings import Settings

    home = tempfile.mkdtemp(prefix="bare-")
    environment = {"VILLAGE_HOME": home, "VILLAGE_PORT": str(port), "VILLAGE_FARM_PORT": str(port + 1)}
    os.environ |= environment

    @serve.deployment(ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": environment}})
    class Bare:
        def __init__(self) -> None:
            from serve_apps.listener import Listener

            async def made() -> Any:
                return build()

            self.listener = Listener(Settings(), "gateway", made).start()

    serve.start(proxy_location="Disabled")
    settings = Settings()
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    serve.run(Bare.bind(), route_prefix=None)
    subprocess.Popen(front.command(settings))
    Path(home, "door").touch()


if __name__ == "__main__":
    main()
