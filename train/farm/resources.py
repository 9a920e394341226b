"""What this machine has and how much of it is in use, measured. MB are 2^20 bytes."""

import asyncio
import math
import os
import shutil
from dataclasses import dataclass
from typing import Any

import psutil

from train.farm.messages import Requirements

MEGABYTE = 1 << 20
QUERY = ("--query-gpu=index,name,memory.total,memory.used,utilization.gpu", "--format=csv,noheader,nounits")
QUERY_SECONDS = 5.0


@dataclass(frozen=True)
class Gpu:
    """A GPU; `usage` in percent, None where the driver does not say."""

    id: int
    name: str
    total_mb: float
    used_mb: float
    usage: float | None


def parse_gpus(told: str) -> list[Gpu]:
    """The lines of nvidia-smi; one that is not of numbers, as in MIG mode, is left out."""
    found: list[Gpu] = []
    for line in told.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 5:
            continue
        numbers = [_number(part) for part in (parts[0], *parts[2:])]
        index, total, used, usage = numbers
        if index is not None and total is not None and used is not None:
            found.append(Gpu(int(index), parts[1][:128], total, used, usage))
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


async def gpus() -> list[Gpu]:
    """The NVIDIA GPUs that this process may use; none where there is no driver.

    The driver's own tool is asked, because torch would take some hundred MB of the GPU to answer.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.strip():
        return []
    only = ("-i", visible) if visible else ()
    process = await asyncio.create_subprocess_exec(
        tool, *QUERY, *only, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(QUERY_SECONDS):
            told, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return []
    return parse_gpus(told.decode(errors="replace"))


class Machine:
    """What this worker offers: a GPU only if it may use one, and not more memory than it is allowed."""

    def __init__(self, device: str, max_memory_mb: float = math.inf) -> None:
        self.device, self.max_memory_mb = device, max_memory_mb
        self._process = psutil.Process()
        psutil.cpu_percent()  # the first call has nothing to compare with

    async def measure(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """`system_info` and `resources` of a heartbeat."""
        memory, cpu = psutil.virtual_memory(), psutil.cpu_percent()
        there = await gpus() if self.device == "cuda" else []
        total = min(memory.total / MEGABYTE, self.max_memory_mb)
        usages = [gpu.usage for gpu in there if gpu.usage is not None]
        system = {
            "cpu_usage": cpu, "ram_usage": memory.percent, "gpu_usage": sum(usages) / len(usages) if usages else None
        }  # fmt: skip
        resources = {
            "cpu": {"cores": cores(), "usage": cpu},
            "ram": {"total": round(total), "used": round(total - self.free_mb())},
            "gpu": [
                {"id": gpu.id, "name": gpu.name, "memory": {"total": round(gpu.total_mb), "used": round(gpu.used_mb)}}
                for gpu in there
            ],
        }
        return system, resources

    def free_mb(self) -> float:
        """What a task could have more of at this moment."""
        mine = self._process.memory_info().rss / MEGABYTE
        return max(0.0, min(psutil.virtual_memory().available / MEGABYTE, self.max_memory_mb - mine))


def cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lacking(wanted: Requirements, resources: dict[str, Any]) -> str:
    """What the machine does not have of a task's requirements, in words; empty where it has all."""
    gpu = max((each["memory"]["total"] for each in resources["gpu"]), default=0)
    pairs = (
        ("CPU cores", wanted.min_cpu_cores, resources["cpu"]["cores"]),
        ("MB of memory", wanted.min_ram, resources["ram"]["total"]),
        ("MB on one GPU", wanted.min_gpu_memory, gpu),
    )
    return "; ".join(f"{need:g} {what} are required, {has:g} are here" for what, need, has in pairs if need > has)
