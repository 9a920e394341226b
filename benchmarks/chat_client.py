"""A client that costs little: on two cores every cycle it burns is taken from the server that it measures."""

import asyncio
import statistics
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import orjson

PROMPT = "Tell me about the village at the river, its mill, its bridge and the people who live there."
STALLED_SECONDS = 120


@dataclass
class Sample:
    """One cell's figures. `first_ms`: median time to the first text, or to the whole answer.

    `cpu_us_per_token`: processor time of the server's processes, engine included; other load on the machine leaves it
    nearly as it is, where it halves the speed.
    """

    tokens_per_second: float
    first_ms: float
    requests: int
    errors: int
    tokens: int
    cpu_us_per_token: float = 0.0


def prompt(number: int) -> str:
    """Another text of the same length for each request, so that no prefix is cached beyond the template."""
    return f"{number:08d} {PROMPT}"


class Worker:
    """One connection that asks, reads to the end, and asks again."""

    def __init__(self, url: str, model: str, key: str, streamed: bool, tokens: int) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self.path, self.model, self.streamed, self.tokens = parts.path + "/chat/completions", model, streamed, tokens
        self.head = f"POST {self.path} HTTP/1.1\r\nhost: {self.host}\r\ncontent-type: application/json\r\n"
        self.head += f"authorization: Bearer {key}\r\n" if key else ""
        self.firsts: list[float] = []
        self.produced = self.errors = 0

    async def run(self, deadline: float, number: int) -> None:
        """Until the deadline; the request in hand is finished."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        while time.perf_counter() < deadline:
            number += 1
            try:
                async with asyncio.timeout(STALLED_SECONDS):
                    await self._ask(reader, writer, number)
            except (OSError, TimeoutError, ValueError):
                self.errors += 1
                writer.close()
                await asyncio.sleep(0.2)
                reader, writer = await asyncio.open_connection(self.host, self.port)
        writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        body = {
            "model": self.model, "messages": [{"role": "user", "content": prompt(number)}], "temperature": 0.8,
            "max_tokens": self.tokens, "ignore_eos": True, "stream": self.streamed,
        }  # fmt: skip
        if self.streamed:
            body["stream_options"] = {"include_usage": True}
        data = orjson.dumps(body)
        begun = time.perf_counter()
        writer.write(f"{self.head}content-length: {len(data)}\r\n\r\n".encode() + data)
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head[:15]:
            raise OSError(head[:200])
        if self.streamed:
            await self._stream(reader, begun)
        else:
            size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            answer = orjson.loads(await reader.readexactly(size))
            self.firsts.append(time.perf_counter() - begun)
            self.produced += answer["usage"]["completion_tokens"]

    async def _stream(self, reader: asyncio.StreamReader, begun: float) -> None:
        tail, first = b"", 0.0
        while not tail.endswith(b"0\r\n\r\n"):
            chunk = await reader.read(65536)
            if not chunk:
                raise OSError("the stream was cut")
            # An event with the role alone has `"content":""`; text is what a reader waits for.
            if not first and b'"content":"' in chunk.replace(b'"content":""', b""):
                first = time.perf_counter() - begun
            tail = (tail + chunk)[-2048:]
        place = tail.rindex(b'"completion_tokens":')
        self.produced += int(tail[place + 20 :].split(b",")[0].split(b"}")[0])
        self.firsts.append(first)


async def measure(
    url: str, model: str, key: str, streamed: bool, concurrency: int, seconds: float, tokens: int
) -> Sample:
    """`concurrency` connections for `seconds`; only whole answers count, and the time until the last one."""
    workers = [Worker(url, model, key, streamed, tokens) for _ in range(concurrency)]
    begun = time.perf_counter()
    base = int(time.time() * 1000) % 10_000_000
    await asyncio.gather(*(w.run(begun + seconds, base + i * 1000) for i, w in enumerate(workers)))
    took = time.perf_counter() - begun
    firsts = [first for worker in workers for first in worker.firsts]
    produced = sum(worker.produced for worker in workers)
    errors = sum(worker.errors for worker in workers)
    return Sample(produced / took, statistics.median(firsts) * 1000 if firsts else -1.0, len(firsts), errors, produced)
