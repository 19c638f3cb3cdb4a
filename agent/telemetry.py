"""Spans of OpenTelemetry, where this process exports them (`server/telemetry.py`); else nothing is loaded for them.

A span tells what was done, how long it took, and ids: of inspection, part and product, and the verdict. It holds no photo,
no key, nothing that a person or a model wrote, and no message of an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from functools import wraps
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
CARRIED = "trace"  # where a job's request carries the context, as a W3C traceparent

_tracer: Any = None  # OpenTelemetry's, while spans are exported


def record_with(tracer: Any) -> None:
    """Make spans with that tracer from now on; None: make none."""
    global _tracer
    _tracer = tracer


def span(name: str, **attributes: str | int | None) -> AbstractContextManager[None]:
    """A span of what the block does, within the span around it. attributes: named `refdiff.NAME`; None is left out."""
    return nullcontext() if _tracer is None else _recorded(name, attributes)


def step(name: str) -> Callable[[F], F]:
    """Give each call of a function a span."""

    def spanned(function: F) -> F:
        @wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            with span(name):
                return function(*args, **kwargs)

        return called  # type: ignore[return-value]

    return spanned


def note(**attributes: str | int | None) -> None:
    """Add attributes to the span around."""
    if _tracer is not None:
        from opentelemetry import trace

        trace.get_current_span().set_attributes(_named(attributes))


def mark_failed(kind: str) -> None:
    """Say that what the span around is of has failed, where no exception leaves it. kind: its `error.type`."""
    if _tracer is not None:
        from opentelemetry import trace

        _fail(trace.get_current_span(), kind)


def carried() -> dict[str, str]:
    """What a job's request carries, so that the spans of whoever runs it hang under the one around; {} without one."""
    carrier: dict[str, str] = {}
    if _tracer is not None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(carrier)
    return {CARRIED: carrier["traceparent"]} if "traceparent" in carrier else {}


@contextmanager
def continuing(parent: str | None, accepted_at: str, *, waited: bool, apart: bool) -> Iterator[None]:
    """The block continues what was accepted elsewhere.

    parent: as `carried` gave it. accepted_at: ISO 8601. waited: whether the wait since then is to be a span. apart: one of
    many, which is a trace of its own with a link to the request; so is one without a parent.
    """
    if _tracer is None:
        yield
        return
    from opentelemetry import context, trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    within = TraceContextTextMapPropagator().extract({"traceparent": parent or ""}, context.Context())
    request = trace.get_current_span(within).get_span_context()
    began, now = int(datetime.fromisoformat(accepted_at).timestamp() * 1e9), time.time_ns()
    began = min(began, now)  # the server's clock may be ahead
    own = apart or not request.is_valid
    token = context.attach(context.Context() if own else within)
    try:
        links = [trace.Link(request)] if request.is_valid else None
        around: Any = nullcontext()
        if own:
            around = _tracer.start_as_current_span("job", start_time=began if waited else now, links=links, **_QUIETLY)
        with around:
            if waited:
                _tracer.start_span("queue wait", start_time=began).end(now)
            yield
    finally:
        context.detach(token)


# messages of errors may name files and people
_QUIETLY: dict[str, Any] = {"record_exception": False, "set_status_on_exception": False}


@contextmanager
def _recorded(name: str, attributes: dict[str, str | int | None]) -> Iterator[None]:
    with _tracer.start_as_current_span(name, attributes=_named(attributes), **_QUIETLY) as current:
        try:
            yield
        except Exception as e:
            _fail(current, type(e).__qualname__)
            raise


def _fail(span: Any, kind: str) -> None:
    from opentelemetry.trace import StatusCode

    span.set_status(StatusCode.ERROR)
    span.set_attribute("error.type", kind)


def _named(attributes: dict[str, str | int | None]) -> dict[str, str | int]:
    return {f"refdiff.{name}": value for name, value in attributes.items() if value is not None}
