"""Traces: OpenTelemetry spans, sent over OTLP/HTTP where `VILLAGE_OTLP_ENDPOINT` says; off, and free, without it.

A trace crosses processes as a W3C `traceparent`: from a caller's header into `Origin.traceparent`, with the event of
each change to whoever works on it, in a task's or run's record to the router and the training job, and to an agent's
endpoint and other servers as a header again.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cluster.origin import Origin
from cluster.settings import Settings

if TYPE_CHECKING:
    from cluster.otlp import Sending

W3C = TraceContextTextMapPropagator()
ASKED_OFTEN = frozenset({"/healthz", "/health", "/readiness", "/metrics"})  # neither traced nor in the access log
NOTHING: AbstractContextManager[Span] = nullcontext(INVALID_SPAN)

_active: "Sending | None" = None  # of this process, as its logging is: set once, by whoever starts it


def configure(settings: Settings, part: str) -> None:
    """Begin to trace this process as the village's `part`, if the settings want it."""
    global _active
    if not settings.otlp_endpoint or _active is not None:
        return
    from cluster.otlp import Sending

    _active = Sending(settings.otlp_endpoint, part, settings.otlp_ratio)


def on() -> bool:
    """Whether this process traces."""
    return _active is not None


def close() -> None:
    """Send what is left, and trace no more."""
    global _active
    if _active is not None:
        _active.close()
        _active = None


def traceparent() -> str:
    """Of the span that this task is in; empty outside of one, and where tracing is off."""
    return _header(trace.get_current_span()) if _active is not None else ""


def _header(span: Span) -> str:
    found = span.get_span_context()
    if not found.is_valid:
        return ""
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"


def span(
    name: str, parent: str = "", *, links: Iterable[str] = (), kind: SpanKind = SpanKind.INTERNAL, **attributes: Any
) -> AbstractContextManager[Span]:
    """`with span("trust.credit", parent=event.origin.traceparent, agent_id=...):` a piece of work as part of a trace.

    Without a parent it continues the span around it, or begins a trace. An exception marks it as failed and goes on.
    In an async generator use `begin`: a generator may be closed from elsewhere.
    """
    if _active is None:
        return NOTHING
    return _spanning(_active.tracer, name, parent, links, kind, attributes)


@contextmanager
def _spanning(
    tracer: trace.Tracer, name: str, parent: str, links: Iterable[str], kind: SpanKind, attributes: dict[str, Any]
) -> Iterator[Span]:
    context = W3C.extract({"traceparent": parent}) if parent else None
    linked = [trace.Link(found) for link in links if (found := _context(link)).is_valid]
    with tracer.start_as_current_span(name, context, kind, attributes, linked) as current:
        yield current


def _context(header: str) -> trace.SpanContext:
    return trace.get_current_span(W3C.extract({"traceparent": header})).get_span_context()


def begin(name: str, **attributes: Any) -> Span:
    """A span that whoever began it ends, with `.end()`; what is done meanwhile is not inside it."""
    return _active.tracer.start_span(name, attributes=attributes) if _active is not None else INVALID_SPAN


def describe(name: str = "", **attributes: Any) -> None:
    """Say more of the span that this task is in: its name, once that is known, and attributes."""
    if _active is None:
        return
    current = trace.get_current_span()
    if name:
        current.update_name(name)
    current.set_attributes(attributes)


def served(app: Any) -> Any:
    """The ASGI app with a server span around each request; itself where tracing is off."""
    return app if _active is None else _active.served(app)


def origin() -> Origin | None:
    """For what a loop commits while it works on somebody's behalf: `with within(tracing.origin()): ...`."""
    header = traceparent()
    return Origin(traceparent=header) if header else None
