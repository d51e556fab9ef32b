"""OpenTelemetry traces across all services.

Spans are exported over OTLP when OTEL_EXPORTER_OTLP_ENDPOINT is set (needs `tandem-common[otlp]`), or as JSON lines to
the file named by OTEL_EXPORTER_FILE_PATH; otherwise nothing is recorded, which costs next to nothing, and a caller's
context is passed on as it came. Between services it travels as a W3C
`traceparent`: in gRPC metadata for calls, in the Generation message for what shares a Session.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tandem_common.config import ConfigError

_PROPAGATOR = TraceContextTextMapPropagator()
_TRACER = trace.get_tracer("tandem")
_NO_SPAN = trace.NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)
# Whatever else a client sends goes nowhere.
_TRACEPARENT = re.compile("[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
# The caller's context while nothing is recorded.
_passed_on: ContextVar[str] = ContextVar("passed_on", default="")


class _Recording:
    """Whether spans go anywhere; set once at start."""

    on = False


def configure_tracing(service: str) -> None:
    """Set up this process's tracer provider, if spans go anywhere; called once, before the first span."""
    if not (os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_FILE_PATH")):
        return
    provider = TracerProvider(resource=Resource.create({"service.name": f"tandem-{service}"}))
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        except ImportError:
            raise ConfigError(
                "OTEL_EXPORTER_OTLP_ENDPOINT is set but the exporter is not installed: "
                "pip install 'tandem-common[otlp]', or unset the variable"
            ) from None
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    if path := os.environ.get("OTEL_EXPORTER_FILE_PATH"):
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open for as long as the process
        exporter = ConsoleSpanExporter(out=file, formatter=lambda span: span.to_json(indent=None) + "\n")
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    _Recording.on = True


def shutdown_tracing() -> None:
    """Export what is left."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


@contextlib.contextmanager
def span(name: str, traceparent: str = "", **attributes: str | float | bool) -> Iterator[trace.Span]:
    """A span around the block, child of `traceparent` if given, else of the current span."""
    if not _Recording.on:
        token = _passed_on.set(traceparent) if _TRACEPARENT.fullmatch(traceparent) else None
        try:
            yield _NO_SPAN
        finally:
            if token is not None:
                _passed_on.reset(token)
        return
    context = _PROPAGATOR.extract({"traceparent": traceparent}) if traceparent else None
    with _TRACER.start_as_current_span(name, context=context, attributes=attributes) as current:
        yield current


def current_traceparent() -> str:
    """W3C trace context of the current span, or the caller's when nothing is recorded; empty outside of one."""
    if not _Recording.on:
        return _passed_on.get()
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent", "")
