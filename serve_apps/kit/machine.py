"""What this machine has and uses: processors, memory, and a GPU where there is one."""

import asyncio
import subprocess
from typing import Any

import psutil

from serve_apps.kit.fresh import Fresh

GPU_SECONDS = 5.0
QUERY = "name,memory.used,memory.total,utilization.gpu,temperature.gpu"
MIB = 1 << 20

psutil.cpu_percent()  # measures from its last call on: without a first one, the first answer would be 0


def cpu() -> dict[str, Any]:
    """Share of the processors that was busy since somebody last asked, in percent, and how many there are."""
    return {"utilization": psutil.cpu_percent(), "cores": psutil.cpu_count()}


def memory() -> dict[str, int]:
    """Bytes."""
    found = psutil.virtual_memory()
    return {"total": found.total, "used": found.total - found.available}


def gpu_of(line: str) -> dict[str, Any] | None:
    """A line of nvidia-smi's: bytes, percent, degrees Celsius; None for what the driver does not tell. Pure."""
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != len(QUERY.split(",")):
        return None
    name, *numbers = fields
    used, total, utilization, temperature = (float(n) if n.replace(".", "", 1).isdigit() else None for n in numbers)
    return {
        "name": name, "memoryUsed": None if used is None else int(used * MIB),
        "memoryTotal": None if total is None else int(total * MIB), "utilization": utilization,
        "temperature": temperature,
    }  # fmt: skip


def _ask_driver() -> dict[str, Any] | None:
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=GPU_SECONDS, text=True)
    except (OSError, subprocess.TimeoutExpired):  # no driver, no GPU
        return None
    return gpu_of(told.stdout.partition("\n")[0])


def first_gpu() -> Fresh[dict[str, Any] | None]:
    """The machine's first GPU, asked for at most every `GPU_SECONDS`."""
    return Fresh(lambda: asyncio.to_thread(_ask_driver), GPU_SECONDS)
