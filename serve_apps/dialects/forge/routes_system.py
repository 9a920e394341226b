"""AI Forge, the system: `/status`. Its `/health` is Orchestra's route, with the fields of both documents."""

import asyncio
from typing import Any

from fastapi import APIRouter

from cluster.errors import NotFound
from cluster.identity.model import Principal
from cluster.presence import Presence
from serve_apps.core import Core, FromCore
from serve_apps.kit import machine
from serve_apps.kit.auth import SignedIn
from serve_apps.kit.openapi import VERSION
from serve_apps.kit.readiness import State, overall
from train.runs import Run, RunState

router = APIRouter()


@router.get("/status")
async def status(who: SignedIn, core: FromCore) -> dict[str, Any]:
    """What the machine of this replica has and uses; `gpu` is null where there is none.

    Models are served by vLLM: `ollama` is absent, and `vllm` has its fields.
    """
    report, gpu, jobs = await asyncio.gather(
        core.readiness.report(), core.gpu.get(), core.store.count(Run, "created", "all", RunState.RUNNING)
    )
    chat = report.get("chat")
    running = chat is not None and chat.ready
    return {
        "healthy": overall(report) is State.HEALTHY,
        "version": VERSION,
        "uptime": round(core.metrics.uptime_seconds),
        "cpu": machine.cpu(),
        "memory": machine.memory(),
        "gpu": gpu,
        "ollama": {"status": "absent", "version": None, "modelsLoaded": []},
        "vllm": {
            "status": "running" if running else "away",
            "modelsLoaded": await loaded(core, who) if running else [],
        },
        "runningJobs": jobs,
    }


async def loaded(core: Core, who: Principal) -> list[str]:
    """Names of the models in the chat replica's memory, those that `who` may know of."""
    said = await core.store.find(Presence, "chat")
    names = []
    for model_id in said.data.get("loaded", ()) if said else ():
        try:
            names.append((await core.models.get(who, model_id)).name)
        except NotFound:  # another's, or the configured one, which the registry does not have
            continue
    return names
