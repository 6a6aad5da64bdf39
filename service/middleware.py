"""What wraps every request: its id, log line, count and safe headers, and a patient goodbye.

All is plain ASGI, so that streamed bodies pass through untouched.
"""

from __future__ import annotations

import re
import time
import uuid

import anyio
import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import ServiceMetrics
from service.problems import ProblemResponse, unexpected

__all__ = ["LingeringClose", "RequestEnvelope", "is_head"]

log = structlog.stdlib.get_logger(__name__)

# What may come in as an id and go out into a header and a log line.
ACCEPTED_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)

MAX_TARGET_BYTES = 8 * 1024
MAX_FIELD_BYTES = 32 * 1024
MAX_FIELDS = 100

SAFE_HEADERS = {
    # An uploaded image must never be taken for a page.
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # What is not made to be kept must not lie in a cache that others share.
    "Cache-Control": "no-store",
    # Answers are data: nothing in them may run, and no page may frame them.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
# The framework's page at /docs loads its script from there.
DOCS_POLICY = (
    "default-src 'none'; connect-src 'self'; frame-ancestors 'none'; "
    "script-src https://cdn.jsdelivr.net 'unsafe-inline'; "
    "style-src https://cdn.jsdelivr.net 'unsafe-inline'; "
    "img-src 'self' data: https://fastapi.tiangolo.com"
)


class RequestEnvelope:
    """Gives each request an id and safe headers, logs and counts its end, catches defects.

    - A caller's own `X-Request-ID` is kept when it is 1 to 128 letters, digits, dots, dashes or
      underscores; anything else is replaced. It stands in the answer and in every log line.
    - A safe header that a route sets itself is left alone, as the page does with its own policy.
    - HEAD is handled as GET (RFC 9110, 9.3.2): the server leaves the body out, and a handler for
      which that costs much asks `is_head`.
    - A head larger than any that makes sense is refused. The parser's own limit does not do: it
      bounds what it buffers, and a large head that comes at once is not buffered.
    - An exception that no handler took is a defect: it is logged, and the answer tells nothing.
    """

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("x-request-id", "")
        if not ACCEPTED_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        began = time.perf_counter()
        status: int | None = None
        head_s = 0.0

        async def send_in_envelope(message: Message) -> None:
            nonlocal status, head_s
            if message["type"] == "http.response.start":
                status, head_s = int(message["status"]), time.perf_counter() - began
                headers = MutableHeaders(scope=message)
                headers.update(state.get("headers", {}))
                headers["X-Request-ID"] = request_id
                if scope["path"].endswith("/docs"):
                    headers.setdefault("Content-Security-Policy", DOCS_POLICY)
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        # What the framework puts into it, the route above all, is read below.
        inner = dict(scope)
        if scope["method"] == "HEAD":
            state["head"] = True
            inner["method"] = "GET"
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                app = _head_refusal(scope) or self.app
                await app(inner, receive, send_in_envelope)
            # The outermost place that can still answer.
            except Exception:
                log.exception("unexpected error", method=scope["method"], path=scope["path"])
                if status is not None:
                    # It is out; only a broken connection can say that the body is not whole.
                    raise
                await unexpected(scope)(scope, receive, send_in_envelope)
            finally:
                if status is not None:
                    self.metrics.note_request(scope["method"], inner.get("route"), status, head_s)
                log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    key=state.get("key"),
                    seconds=round(time.perf_counter() - began, 4),
                )


def is_head(request: Request) -> bool:
    """Whether a request that looks like a GET was a HEAD."""
    return bool(request.scope["state"].get("head", False))


def _head_refusal(scope: Scope) -> ProblemResponse | None:
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


class LingeringClose:
    """Reads on for a moment when an answer leaves before the request's body was read.

    Closing a socket with unread bytes resets the connection, and a client still sending may then
    lose the 413 that tells why. So the answer goes out whole, what still comes is thrown away for
    at most `seconds`, and then the connection closes. The server itself would read on for as long
    as the client likes.
    """

    def __init__(self, app: ASGIApp, seconds: float = 5.0) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # A client that waits for "100 Continue" sends nothing once it has the final answer.
        unread = (
            headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        ) and "expect" not in headers

        async def watched_receive() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def lingering_send(message: Message) -> None:
            if unread and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            if unread and message["type"] == "http.response.body" and not message.get("more_body"):
                await send({**message, "more_body": True})
                with anyio.move_on_after(self.seconds):
                    while unread:
                        await watched_receive()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await self.app(scope, watched_receive, lingering_send)
