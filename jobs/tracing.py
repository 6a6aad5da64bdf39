"""Traces (OpenTelemetry): spans of requests and of attempts at jobs, and where they are sent.

The standard variables alone switch this on: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER and so
on. Without them there are no spans; what a caller says of its trace is only handed on.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Token
from datetime import datetime

import structlog
from opentelemetry import context, trace
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from .schema import Job

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
# How long the end of a process may wait for the collector. The SDK would wait for 30 seconds.
FLUSH_S = 1.0
# Baggage is left out: it could be anything, and no one here reads it.
PROPAGATOR = TraceContextTextMapPropagator()
TRACER = trace.get_tracer("stablesr")

log = structlog.stdlib.get_logger(__name__)


def start(name: str) -> Callable[[], None]:
    """Sends this process's spans where the variables say, as the service `name` unless they have
    another; returns what sends the last of them and ends that, within FLUSH_S.

    It is no error of the process that this cannot be: a whole host may have these variables.
    """

    def variable(*names: str) -> str:
        return next(filter(None, map(os.environ.get, names)), "")

    is_off = variable("OTEL_SDK_DISABLED").lower() == "true"
    if is_off or variable("OTEL_TRACES_EXPORTER") == "none" or not variable(*ENDPOINTS):
        return lambda: None
    protocol = variable(*PROTOCOLS) or PROTOCOL
    if protocol != PROTOCOL:
        reason = f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol}, and only {PROTOCOL} is spoken"
        log.error("traces are not sent", reason=reason)
        return lambda: None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
    except ImportError as error:
        reason = (
            f"OTEL_EXPORTER_OTLP_ENDPOINT is set, and {error.name} is missing: install it with "
            '`pip install "stablesr-server[otel]"`'
        )
        log.error("traces are not sent", reason=reason)
        return lambda: None
    one_line = _OneLine()
    # Of each batch that fails; of each span for which the queue has no room.
    for module in (OTLPSpanExporter.__module__, "opentelemetry.sdk._shared_internal"):
        logging.getLogger(module).addFilter(one_line)

    class Exporter(OTLPSpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = super().export(spans)
            one_line.note(len(spans), arrived=result is SpanExportResult.SUCCESS)
            return result

    # What code says would win over the variables.
    resource = Resource.create({"service.name": name}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Exporter()))
    trace.set_tracer_provider(provider)

    def stop() -> None:
        flush = threading.Thread(target=provider.shutdown, name="flush of spans", daemon=True)
        flush.start()
        flush.join(FLUSH_S)

    return stop


class _OneLine(logging.Filter):
    """Lets one line through until the collector answers again, where the SDK writes some for each
    batch that fails."""

    losses, is_away = 0, False

    def filter(self, record: logging.LogRecord) -> bool:
        was_away, self.is_away = self.is_away, True
        return not was_away

    def note(self, spans: int, *, arrived: bool) -> None:
        if not arrived:
            self.losses += spans
        elif self.is_away:
            log.info("traces are sent again", dropped=self.losses)
            self.losses, self.is_away = 0, False


def carrier() -> dict[str, str]:
    """The current span as header fields, `traceparent` and `tracestate`; empty without one."""
    fields: dict[str, str] = {}
    PROPAGATOR.inject(fields)
    return fields


def fail(span: Span, error: BaseException) -> None:
    """Only the kind of an error is told: its text may hold an address or more of a client."""
    span.set_status(StatusCode.ERROR, type(error).__name__)
    span.set_attribute("error.type", type(error).__name__)


@contextmanager
def span_of(
    name: str,
    caller: Mapping[str, str] | None,
    kind: SpanKind,
    attributes: Mapping[str, AttributeValue],
) -> Iterator[Span]:
    """The block is the current span, within the trace that the fields of a `carrier` name."""
    parent = PROPAGATOR.extract(caller or {})
    with TRACER.start_as_current_span(
        name, parent, kind, attributes, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield span
        except BaseException as error:
            fail(span, error)
            raise


class AttemptSpans:
    """The span `job` of one attempt and those of its parts; for the attempt's own thread.

    Their times are the Redis server's, as those of the record, since hosts' clocks disagree.
    """

    def __init__(self) -> None:
        self._job: Span = trace.INVALID_SPAN
        self._token: Token[context.Context] | None = None
        self._clock_s = 0.0

    def start(self, job: Job) -> None:
        """The attempt has just started. With the first one, `job` begins when it was submitted."""
        assert job.started_at is not None
        self._clock_s = job.started_at.timestamp() - time.monotonic()
        is_first = job.attempt == 1
        self._job = TRACER.start_span(
            "job",
            PROPAGATOR.extract(job.trace or {}),
            SpanKind.CONSUMER,
            start_time=_nanoseconds(job.created_at if is_first else job.started_at),
        )
        self.describe(id=job.id, preset=job.preset, steps=job.parameters.steps, attempt=job.attempt)
        self._token = context.attach(trace.set_span_in_context(self._job))
        if is_first:
            queue = TRACER.start_span("queue", start_time=_nanoseconds(job.created_at))
            queue.end(_nanoseconds(job.started_at))

    def describe(self, **attributes: object) -> None:
        """Attributes of `job`; what is no plain value is left out."""
        for name, value in attributes.items():
            if isinstance(value, str | bool | int | float):
                self._job.set_attribute(f"stablesr.job.{name}", value)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The block is this part of the job."""
        span = TRACER.start_span(name, start_time=self._now())
        try:
            yield
        finally:
            span.end(self._now())

    def fail(self, error: BaseException) -> None:
        fail(self._job, error)

    def end(self) -> None:
        """Nothing where the attempt did not start."""
        if self._token is not None:
            context.detach(self._token)
            self._job.end(self._now())

    def _now(self) -> int:
        return int((self._clock_s + time.monotonic()) * 1e9)


def _nanoseconds(time: datetime) -> int:
    return int(time.timestamp() * 1e9)
