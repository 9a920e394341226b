"""The sending half of tracing: OpenTelemetry's SDK, its exporter and instruments. Imported only where it is on."""

from collections.abc import Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import SpanKind

from cluster.tracing import ASKED_OFTEN

EXPORT_MS = 1000
EXPORT_SECONDS = 2  # for one batch, tries included: also what the end of a process may wait for an absent collector
SAFE_HEADERS = frozenset({b"host", b"user-agent", b"traceparent", b"tracestate"})
ASKED = "village.asked"  # where the scope that the app gets waits, while OpenTelemetry sees one without secrets


class Requests(Sampler):
    """No trace begins with a call to a server: the loops' own commands to Redis would each be one, many a second."""

    def __init__(self, ratio: float) -> None:
        self.inner = TraceIdRatioBased(ratio)

    def should_sample(
        self, parent_context: Any, trace_id: int, name: str, kind: SpanKind | None = None, attributes: Any = None,
        links: Sequence[trace.Link] | None = None, trace_state: Any = None,
    ) -> SamplingResult:  # fmt: skip
        """See OpenTelemetry."""
        if kind is SpanKind.CLIENT:
            return SamplingResult(Decision.DROP)
        return self.inner.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """See OpenTelemetry."""
        return f"Requests({self.inner.get_description()})"


class Sending:
    """Spans of this process on their way to the collector; while that is away they are dropped, and nobody waits."""

    def __init__(self, endpoint: str, part: str, ratio: float) -> None:
        resource = Resource.create({"service.name": f"village-{part}", "service.namespace": "village"})
        self.provider = TracerProvider(resource=resource, sampler=ParentBased(Requests(ratio)))
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_SECONDS)
        self.provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=EXPORT_MS))
        self.tracer = self.provider.get_tracer("village")
        self._instrumentors: list[Any] = [RedisInstrumentor(), HTTPXClientInstrumentor(), AioHttpClientInstrumentor()]
        for instrumentor in self._instrumentors:
            instrumentor.instrument(
                tracer_provider=self.provider, meter_provider=NoOpMeterProvider(), url_filter=_where
            )

    def served(self, app: Any) -> Any:
        """The ASGI app with a server span around each request.

        What OpenTelemetry sees of it has no query string, which may hold a token, and no header with a credential.
        """

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            await app(scope[ASKED], receive, send)

        traced = OpenTelemetryMiddleware(
            inner, default_span_details=lambda scope: (scope.get("method", "WS"), {}),
            tracer_provider=self.provider, meter_provider=NoOpMeterProvider(), exclude_spans=["receive", "send"],
        )  # fmt: skip

        async def outer(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] in ASKED_OFTEN:
                await app(scope, receive, send)
                return
            headers = [header for header in scope["headers"] if header[0] in SAFE_HEADERS]
            await traced({**scope, "query_string": b"", "headers": headers, ASKED: scope}, receive, send)

        return outer

    def close(self) -> None:
        """Send what is left, and let the libraries be as they were."""
        for instrumentor in self._instrumentors:
            instrumentor.uninstrument()
        self.provider.shutdown()


def _where(url: Any) -> str:
    """Of a URL only whose it is: the path of a webhook is often its password."""
    return str(url.origin())
