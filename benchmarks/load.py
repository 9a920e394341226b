"""A load generator that costs little beside what it measures: raw HTTP/1.1 over kept-alive connections, on uvloop."""

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import uvloop


@dataclass(frozen=True)
class Load:
    """What one cell of a table measured. Times in milliseconds."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    errors: int


def request_bytes(method: str, path: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    """One request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", "Host: village", *(f"{name}: {value}" for name, value in headers.items())]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def _one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bool:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    lowered = head.lower()
    start = lowered.find(b"content-length:")
    if start >= 0:
        length = int(lowered[start + 15 : lowered.index(b"\r\n", start)])
        if length:
            await reader.readexactly(length)
    else:
        while (size := int((await reader.readline()).strip() or b"0", 16)) > 0:
            await reader.readexactly(size + 2)
        await reader.readline()
    return head[9:10] == b"2"


async def _client(host: str, port: int, request: bytes, until: float, times: list[float], failed: list[int]) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    while (begun := time.perf_counter()) < until:
        if not await _one(reader, writer, request):
            failed[0] += 1
        times.append(time.perf_counter() - begun)
    writer.close()


async def _run(host: str, port: int, request: bytes, concurrency: int, seconds: float) -> Load:
    times: list[float] = []
    failed = [0]
    begun = time.perf_counter()
    await asyncio.gather(*(_client(host, port, request, begun + seconds, times, failed) for _ in range(concurrency)))
    elapsed = time.perf_counter() - begun
    cuts = statistics.quantiles(times, n=100)
    return Load(len(times) / elapsed, cuts[49] * 1000, cuts[98] * 1000, failed[0])


def run(host: str, port: int, request: bytes, concurrency: int, seconds: float) -> Load:
    """Send the request over and over from `concurrency` connections for `seconds`."""
    return uvloop.run(_run(host, port, request, concurrency, seconds))


def middle(values: list[float]) -> str:
    """`min / median / max`."""
    return f"{min(values):.0f} / {statistics.median(values):.0f} / {max(values):.0f}"


def rounds(count: int, cells: dict[str, Callable[[], Load]]) -> dict[str, list[Load]]:
    """Every cell once per round, in turn, so that a slow minute of the machine falls on all of them."""
    found: dict[str, list[Load]] = {name: [] for name in cells}
    for _ in range(count):
        for name, cell in cells.items():
            found[name].append(cell())
    return found
