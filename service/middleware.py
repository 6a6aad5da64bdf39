"""What wraps every request: its id, log line, count, safe headers, and the names it may come under.

A web page can name its own host and have that name resolve to 127.0.0.1 (DNS rebinding): the
browser then takes the service for the page's own. It can also post a form there without reading the
answer. Both show: in Host, which is not a local name, and in Origin, which is not the Host.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
import uuid
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import lru_cache
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import structlog
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs import tracing
from jobs.errors import QueueUnavailable
from jobs.settings import Settings
from service.admission import services_of
from service.metrics import METHODS, ServiceMetrics
from service.problems import HTTPError, ProblemResponse, defect, respond
from service.ratelimit import address_key

log = structlog.stdlib.get_logger(__name__)

# What may come in as an id and go out into a header and a log line.
ACCEPTED_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)

MAX_TARGET_BYTES = 8 * 1024
MAX_FIELD_BYTES = 32 * 1024
MAX_FIELDS = 100
# So much of `tracestate` is to be handed on at least (W3C), and it lies in the record of a job.
MAX_STATE_BYTES = 512
# About what one request costs, so that only those notice it who have many at once.
TURN_S = 0.001

ANY = "*"
# They are asked all the time, by machines.
UNTRACED = frozenset({"/livez", "/readyz", "/metrics"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

SAFE_HEADERS = {
    # An uploaded image must never be taken for a page.
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    # What is not made to be kept must not lie in a cache that others share.
    b"cache-control": b"no-store",
    # Answers are data: nothing in them may run, and no page may frame them.
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
}


class RequestEnvelope:
    """Gives each request an id and safe headers, logs and counts its end, catches defects.

    - It is a span of its caller's trace, without path and query: an address may open a result.
    - A client's `X-Request-ID` is kept where it is one word, and stands in every log line.
    - HEAD is handled as GET (RFC 9110, 9.3.2): the server leaves the body out, and a handler for
      which that costs much asks `is_head`.
    - A head larger than any that makes sense is refused. The parser's own limit does not do: it
      bounds what it buffers, and a large head that comes at once is not buffered.
    - An unknown Host, and a change that a page of another origin asks for, are refused. Known are
      the local names and those of `allowed_hosts`, and for pages `cors_origins`; without allowed
      hosts, only a service is guarded that listens on loopback and requires no key.

    It is plain ASGI, so that streamed bodies pass through untouched.
    """

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics, settings: Settings) -> None:
        self.app = app
        self.metrics = metrics
        self._turns = WeakValueDictionary[str, asyncio.Lock]()
        names = (name.strip().lower() for name in settings.allowed_hosts.split(","))
        self._hosts = frozenset(names) - {""}
        self._origins = frozenset(settings.allowed_origins)
        self._guards_hosts = ANY not in self._hosts and bool(
            self._hosts or (is_loopback(settings.host) and settings.access != "keys")
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        # Of a field that comes twice the first counts.
        fields = dict(reversed(scope["headers"]))
        request_id = fields.get(b"x-request-id", b"").decode("latin-1")
        if not ACCEPTED_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        client = None if scope["client"] is None else scope["client"][0]
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        status: int | None = None
        head_s = 0.0

        async def send_in_envelope(message: Message) -> None:
            nonlocal status, head_s
            if message["type"] == "http.response.start":
                status, head_s = int(message["status"]), time.perf_counter() - start
                headers = [*message.get("headers", ())]
                names = {name for name, _ in headers}
                headers += state.get("headers", ())
                headers.append((b"x-request-id", request_id.encode()))
                headers += [item for item in SAFE_HEADERS.items() if item[0] not in names]
                message = {**message, "headers": headers}
            await send(message)

        # What the framework puts into it, the route above all, is read below.
        inner = dict(scope)
        if scope["method"] == "HEAD":
            state["head"] = True
            inner["method"] = "GET"
        with (
            structlog.contextvars.bound_contextvars(request_id=request_id),
            _span(scope, fields) as span,
        ):
            try:
                await self._turn(client)
                app = _oversize(scope) or await self._foreign(scope, fields) or self.app
                await app(inner, receive, send_in_envelope)
            # The outermost place that can still answer.
            except Exception:
                log.exception("unexpected error", method=scope["method"], path=scope["path"])
                if status is not None:
                    # It is out; only a broken connection can say that the body is not whole.
                    raise
                await defect(scope)(scope, receive, send_in_envelope)
            finally:
                if status is not None:
                    self.metrics.note_request(scope["method"], inner.get("route"), status, head_s)
                    _describe(span, scope, getattr(inner.get("route"), "path", None), status)
                log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    client=client,
                    key=state.get("key"),
                    seconds=round(time.perf_counter() - start, 4),
                )

    async def _turn(self, client: str | None) -> None:
        """Lets a request of an address begin TURN_S after the one before; further ones queue.

        So the others' requests, and the threads that some need, are never behind all of its own.
        """
        lock = self._turns.setdefault(address_key(client), asyncio.Lock())
        await lock.acquire()
        asyncio.get_running_loop().call_later(TURN_S, lock.release)

    async def _foreign(self, scope: Scope, fields: dict[bytes, bytes]) -> Response | None:
        """The refusal of a Host that is not known, or of a change by a page of another origin."""
        if not self._guards_hosts:
            return None
        host, origin = (fields.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        name = _name(f"//{host}")
        if name not in self._hosts and not is_loopback(name):
            error = HTTPError(
                "foreign-host",
                f"The service does not answer as {host[:100]!r}; ask it as localhost or 127.0.0.1, "
                "or have its operator name the host in STABLESR_ALLOWED_HOSTS.",
            )
        elif (
            b"origin" in fields
            and scope["method"] not in SAFE_METHODS
            and origin.partition("://")[2].lower() != host.lower()
            and _name(origin) not in self._hosts
            and not self._origins & {origin.lower(), ANY}
        ):
            error = HTTPError(
                "foreign-origin",
                f"A page of {origin[:100]!r} may not do this; only a page of {host[:100]!r} may, "
                "or one in STABLESR_ALLOWED_HOSTS or STABLESR_CORS_ORIGINS.",
            )
        else:
            return None
        request = Request(scope)
        with suppress(QueueUnavailable):
            if not self._hosts and await services_of(request).authenticator.requires_key():
                return None
        return respond(request, error)


def is_head(request: Request) -> bool:
    """Whether a request that looks like a GET was a HEAD."""
    return bool(request.scope["state"].get("head", False))


@lru_cache(maxsize=1000)
def is_loopback(host: str) -> bool:
    """Whether a host, with or without brackets, means this machine and no other."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        # A name may mean any address.
        return False


def _span(scope: Scope, fields: dict[bytes, bytes]) -> AbstractContextManager[Span]:
    """The request's, within its caller's trace."""
    if scope["path"] in UNTRACED:
        return nullcontext(INVALID_SPAN)
    caller = {
        name: fields[name.encode()].decode("latin-1")
        for name in ("traceparent", "tracestate")
        if len(fields.get(name.encode(), b"")) in range(1, MAX_STATE_BYTES + 1)
    }
    attributes = {"http.request.method": _method(scope), "url.scheme": scope.get("scheme", "http")}
    return tracing.span_of(_method(scope), caller, SpanKind.SERVER, attributes)


def _describe(span: Span, scope: Scope, route: str | None, status: int) -> None:
    """What is known at the end; without a route the method alone names the span."""
    span.set_attribute("http.response.status_code", status)
    if route is not None:
        span.update_name(f"{_method(scope)} {route}")
        span.set_attribute("http.route", route)
    if status >= 500:
        span.set_status(StatusCode.ERROR)


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else "_OTHER"


def _name(url: str) -> str:
    """The host's name or address, without its port; empty for what has none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _oversize(scope: Scope) -> Response | None:
    """The refusal of a request whose target or header fields are too large."""
    target, fields = len(scope["raw_path"]) + len(scope["query_string"]), scope["headers"]
    if target > MAX_TARGET_BYTES:
        detail = f"The target has {target} bytes; at most {MAX_TARGET_BYTES} are read."
        return ProblemResponse({**scope, "path": ""}, 414, detail)
    size = sum(len(name) + len(value) for name, value in fields)
    if size > MAX_FIELD_BYTES or len(fields) > MAX_FIELDS:
        detail = (
            f"There are {len(fields)} header fields of {size} bytes; at most {MAX_FIELDS} of "
            f"{MAX_FIELD_BYTES} are read."
        )
        return ProblemResponse(scope, 431, detail)
    return None
