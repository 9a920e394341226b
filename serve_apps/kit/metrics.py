"""Prometheus metrics that one gateway process counts; `kit.exposition` adds them up, `kit.census` counts the store.

Labels are few and ours: route templates, dialects, the village's own models. Never a path, an id or a caller's word.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
disable_created_metrics()  # a family more for each counter, which nobody reads and a sum over processes cannot have
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WS"})


class Metrics:
    """Counters of this process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "http_requests", "HTTP requests answered", ("method", "endpoint", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "http_request_duration_seconds", "From the first byte in to the last byte out", ("method", "endpoint"),
            buckets=BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.sockets = Gauge("websocket_connections", "Open WebSocket connections", registry=self.registry)
        self.sockets_ever = Counter("websocket_connections_opened", "WebSockets ever opened", registry=self.registry)
        self.limited = Counter(
            "village_rate_limited_requests", "Requests refused with 429", ("dialect",), registry=self.registry
        )
        self.replayed = Counter(
            "village_idempotent_replays", "First answers given again for an Idempotency-Key", registry=self.registry
        )
        self.scrape_errors = Counter(
            "village_scrape_errors", "Scrapes that the store did not answer", registry=self.registry
        )
        self.registry.register(Process())
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
            known = method if method in METHODS else "other"
            children = self.requests.labels(known, endpoint, str(status)), self.seconds.labels(known, endpoint)
            if known == method:
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

    def watch(self, name: str, documentation: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        """Show as a counter what a plain object counts by itself: `read()` gives its value for each of `label`."""
        self.registry.register(Watched(name, documentation, label, read))

    def text(self) -> str:
        """This process alone, in Prometheus' text format."""
        return generate_latest(self.registry).decode()


class Watched(Collector):
    """A counter that somebody without Prometheus keeps."""

    def __init__(self, name: str, documentation: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        self.name, self.documentation, self.label, self.read = name, documentation, label, read

    def collect(self) -> Iterator[Metric]:
        """See Prometheus."""
        family = CounterMetricFamily(self.name, self.documentation, labels=(self.label,))
        for value, count in self.read().items():
            family.add_metric((value,), count)
        yield family


class Process(Collector):
    """What this process takes of the machine; the sum over replicas is what the gateway takes."""

    def __init__(self) -> None:
        self.process = psutil.Process()

    def collect(self) -> Iterator[Metric]:
        """See Prometheus."""
        with self.process.oneshot():
            cpu, memory = self.process.cpu_times(), self.process.memory_info()
        yield GaugeMetricFamily("village_gateway_processes", "Gateway processes that answered this scrape", 1)
        yield CounterMetricFamily(
            "village_gateway_cpu_seconds", "CPU time of the gateway's processes", cpu.user + cpu.system
        )
        yield GaugeMetricFamily(
            "village_gateway_resident_memory_bytes", "Resident memory of the gateway's processes", memory.rss
        )
