"""Prometheus metrics of one gateway process, and their sum over all of them."""

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIBLING_SECONDS = 1.0
PROCESS = "x-village-process"


class Metrics:
    """Counters of this process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "endpoint", "status")
        self.requests = Counter("http_requests", "HTTP requests answered", labels, registry=self.registry)
        self.seconds = Histogram(
            "http_request_duration_seconds", "From the first byte in to the last byte out", ("method", "endpoint"),
            buckets=BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.sockets = Gauge("websocket_connections", "Open WebSocket connections", registry=self.registry)
        self.sockets_ever = Counter("websocket_connections_opened", "WebSockets ever opened", registry=self.registry)
        self.limited = Counter(
            "rate_limited_requests", "Requests refused with 429", ("dialect",), registry=self.registry
        )
        self.begun = time.monotonic()
        self.process = secrets.token_hex(8)  # tells a sibling's numbers from our own, through another socket
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    @property
    def uptime_seconds(self) -> float:
        """How long this process has been up."""
        return time.monotonic() - self.begun

    def answered(self, method: str, endpoint: str, status: int, seconds: float) -> None:
        """One request more. `endpoint` is the route's template: callers' own paths would be labels without end."""
        children = self._children.get((method, endpoint, status))
        if children is None:
            children = self.requests.labels(method, endpoint, str(status)), self.seconds.labels(method, endpoint)
            self._children[(method, endpoint, status)] = children
        children[0].inc()
        children[1].observe(seconds)

    def socket(self, change: int) -> None:
        """A WebSocket was opened (+1) or closed (-1)."""
        self.sockets.inc(change)
        if change > 0:
            self.sockets_ever.inc()

    def sockets_now(self) -> tuple[int, int]:
        """WebSockets open in this process, and opened so far."""
        return int(self.sockets._value.get()), int(self.sockets_ever._value.get())  # the library has no reader

    def text(self) -> str:
        """This process alone, in Prometheus' text format."""
        return generate_latest(self.registry).decode()


async def exposition(own: Metrics, sockets: Iterable[Path]) -> str:
    """The sum over all gateway processes: this one, and the others that answer on these Unix sockets.

    A scrape reaches any replica by chance; without the sum its counters would jump between theirs.
    """
    texts = dict(await asyncio.gather(*(_ask(path) for path in sockets)))
    texts.pop("", None)
    texts[own.process] = own.text()
    registry = CollectorRegistry()
    registry.register(_Sum(texts.values()))
    return generate_latest(registry).decode()


async def _ask(socket: Path) -> tuple[str, str]:
    try:
        async with httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket)), timeout=SIBLING_SECONDS
        ) as client:
            answer = await client.get("http://gateway/metrics", params={"own": "true"})
            return answer.headers.get(PROCESS, ""), answer.text
    except httpx.HTTPError:  # a socket whose process is gone
        return "", ""


class _Sum(Collector):
    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = texts

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = defaultdict(lambda: defaultdict(float))
        for text in self.texts:
            for family in text_string_to_metric_families(text):
                families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    if not sample.name.endswith("_created"):
                        sums[family.name][(sample.name, tuple(sample.labels.items()))] += sample.value
        for name, family in families.items():
            for (sample, labels), value in sums[name].items():
                family.add_sample(sample, dict(labels), value)
            yield family
