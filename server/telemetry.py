"""Export spans to a collector by OTLP over HTTP, where the standard variable OTEL_EXPORTER_OTLP_ENDPOINT is set.

Needs the extra `telemetry`. Without the variable nothing of it is loaded. OpenTelemetry's other variables work too: headers,
sampling, service name, batches.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from refdiff.agent import telemetry
from refdiff.model.errors import UnavailableError
from refdiff.server.extras import require_extra

log = logging.getLogger(__name__)

_ANSWER_S = 3.0  # longest wait for an answer of the collector, unless OpenTelemetry's variable says otherwise
END_S = 5.0  # longest wait for it at the end of the process, where several requests may be due: those beyond are lost
_UNTOLD = ("/healthz", "/readyz", "/metrics", "/page/", "/static-offline-docs/")
_provider: Any = None


@contextmanager
def exporting(service: str) -> Iterator[None]:
    """Export what this process does in the block. service: name of the process, unless OTEL_SERVICE_NAME gives one."""
    if not _is_wanted():
        yield
        return
    try:
        require_extra("telemetry")
    except UnavailableError as e:  # the variable may be there for all programs of a machine or a cluster
        log.warning("OTEL_EXPORTER_OTLP_ENDPOINT is set, but no traces are sent: %s", e)
        yield
        return
    global _provider
    _provider = _provided(service)
    telemetry.record_with(_provider.get_tracer("refdiff", version("refdiff")))
    try:
        yield
    finally:
        telemetry.record_with(None)
        ending = threading.Thread(target=_provider.shutdown, name="end of traces", daemon=True)
        ending.start()
        ending.join(END_S)  # the library's own limit is half a minute, longer than some servers are given to end
        _provider = None


def of_requests() -> dict[str, Any]:
    """How FastAPI traces requests: as spans of ours, or not at all; in no case by itself."""
    off = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
    if _provider is None:
        return off
    return off | {"tracing": True, "tracer_provider": _provider, "operation_spans": False, "exclude": _is_untold}


def _is_untold(scope: MutableMapping[str, Any]) -> bool:
    return str(scope.get("path", "")).startswith(_UNTOLD)


def _is_wanted() -> bool:
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    return any(os.environ.get(name) for name in names) and not disabled and exporter != "none"


def _provided(service: str) -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    class Discreet(SpanProcessor):
        """Keeps out what callers write and FastAPI notes: the route is enough, and queries hold codes of sign-ins."""

        def on_start(self, span: Span, parent_context: Any = None) -> None:
            for name in ("url.path", "url.query", "server.address", "http.request.method_original"):
                if name in (span.attributes or {}):
                    span.set_attribute(name, "REDACTED")

        def on_end(self, span: ReadableSpan) -> None:
            pass

    about: dict[str, Any] = {
        "service.version": version("refdiff"),
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
    }
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not named:
        about["service.name"] = service
    waits = any(os.environ.get(f"OTEL_EXPORTER_OTLP_{name}TIMEOUT") for name in ("", "TRACES_"))
    provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
    provider.add_span_processor(Discreet())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=None if waits else _ANSWER_S)))
    return provider
