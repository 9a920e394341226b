"""Filling a Ray cluster with the village: the core's actors and the Serve applications. `python -m cluster.runtime`."""

import os
import sys
import threading
import time
from typing import Any

import ray
import yaml
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from cluster.actors import ACTORS, NAMESPACE, RayHands, ray_workers, start_all
from cluster.settings import ROOT, Settings


def deploy(settings: Settings) -> None:
    """Fill the Ray cluster: the core's actors and the Serve applications of configs/serve.yaml. Idempotent."""
    serve_client = connect(settings)
    environment = deployed_environment(settings)
    actors = start_all(environment)
    ray.get([actor.pid.remote() for actor in actors.values()], timeout=60)
    config = yaml.safe_load((ROOT / "configs" / "serve.yaml").read_text())
    for application in config["applications"]:
        application.setdefault("runtime_env", {})["env_vars"] = environment
    serve_client.deploy_applications(config)
    ray.shutdown()


def deployed_environment(settings: Settings) -> dict[str, str]:
    """What actors and replicas need that a node of somebody else's cluster does not have."""
    return settings.environment() | {"VILLAGE_CHILD": "1"}


def connect(settings: Settings, patience_seconds: float = 60) -> Any:
    """A driver's connection, and the client of Serve's REST API. Exits with EX_CONFIG where waiting cannot help."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            ray.init(address=settings.ray, namespace="village", log_to_driver=False, configure_logging=False)
            return ServeSubmissionClient(settings.dashboard)
        except RuntimeError as error:
            if "Version mismatch" in str(error):
                print(f"Ray at {settings.ray} has another version: {str(error).splitlines()[0]}", flush=True)
                sys.exit(os.EX_CONFIG)
            if time.monotonic() > deadline:
                raise
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
        ray.shutdown()
        threading.Event().wait(0.5)


def remove(settings: Settings) -> None:
    """Take the applications and actors out again."""
    client = connect(settings, patience_seconds=5)
    client.delete_applications()
    workers = [RayHands.PREFIX + name for name in ray_workers()]
    for name in (*ACTORS, *workers):
        try:
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))
        except ValueError:
            continue


if __name__ == "__main__":
    (remove if sys.argv[1:] == ["remove"] else deploy)(Settings())
