"""A collector on loopback: takes OTLP over HTTP and keeps the spans, decoded by OpenTelemetry's own messages."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Received:
    """One span."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    links: tuple[str, ...]
    failed: bool


@dataclass
class Collector:
    """`spans` in the order in which they came; `raw` holds every byte of them."""

    url: str = ""
    spans: list[Received] = field(default_factory=list)
    raw: bytes = b""

    def take(self, body: bytes) -> None:
        self.raw += body
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = next(a.value.string_value for a in group.resource.attributes if a.key == "service.name")
            for scope in group.scope_spans:
                self.spans += [decoded(span, service) for span in scope.spans]

    def named(self, name: str) -> list[Received]:
        return [span for span in self.spans if span.name == name]


def decoded(span: Any, service: str) -> Received:
    return Received(
        span.name, service, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
        {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes},
        tuple(link.span_id.hex() for link in span.links), span.status.code == 2,
    )  # fmt: skip


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector for the length of a block."""
    kept = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                kept.take(body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Tests need no access log."""

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.url = f"http://127.0.0.1:{serving.server_address[1]}"
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield kept
    finally:
        serving.shutdown()
        thread.join()
        serving.server_close()
