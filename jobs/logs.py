"""Log lines of a process: structlog's and the standard library's in one format, on stderr."""

from __future__ import annotations

import logging
import os
import sys

import structlog
from opentelemetry import trace

from jobs.settings import Settings

CONSOLE = "STABLESR_CONSOLE"
"""In the environment of processes whose lines `stablesr up` shows to a person."""


def printable(text: str) -> str:
    """A text with every control character escaped but line breaks and tabs: what clients send must
    not move the cursor of a terminal, or tell it anything else."""
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape").decode()
        for character in text
    )


class _PrintableFormatter(structlog.stdlib.ProcessorFormatter):
    """Tracebacks and the values in the line hold what clients sent; so all of it is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _add_trace(
    logger: object, method: str, line: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Of the current span, where there is one."""
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        line["trace_id"] = trace.format_trace_id(span.trace_id)
        line["span_id"] = trace.format_span_id(span.span_id)
    return line


def configure_logging(settings: Settings) -> None:
    """Sends every log line to stderr: JSON, or text on a terminal."""
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_trace,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *processors,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    last: list[structlog.typing.Processor]
    if sys.stderr.isatty() or CONSOLE in os.environ:
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=False, exception_formatter=plain)]
    else:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _PrintableFormatter(
            foreign_pre_chain=processors,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    # Python's warnings would be lines of another kind.
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level)
    # RQ tells of every job that it takes and ends, which the worker tells better.
    if settings.log_level == "INFO":
        for name in ("rq", "rq.worker"):
            logging.getLogger(name).setLevel(logging.WARNING)
