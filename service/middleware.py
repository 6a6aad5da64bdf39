"""What wraps every request: its id and log line, safe headers, the last catch, a patient goodbye.

All are plain ASGI, so that streamed bodies pass through untouched.
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

from service.problems import refusal, unexpected

__all__ = [
    "BoundedHead",
    "CatchAll",
    "HeadAsGet",
    "LingeringClose",
    "RequestId",
    "SafeHeaders",
    "is_head",
]

log = structlog.stdlib.get_logger(__name__)

# What may come in as an id and go out into a header and a log line.
ACCEPTED_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)

MOST_TARGET = 8 * 1024
MOST_FIELD_BYTES = 32 * 1024
MOST_FIELDS = 100

SAFE = {
    # An uploaded image must never be taken for a page.
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # What is not made to be kept must not lie in a cache that others share.
    "Cache-Control": "no-store",
}
# Answers are data: nothing in them may run, and no page may frame them.
POLICY = "default-src 'none'; frame-ancestors 'none'"
# The framework's page at /docs loads its script from there.
DOCS_POLICY = (
    "default-src 'none'; connect-src 'self'; frame-ancestors 'none'; "
    "script-src https://cdn.jsdelivr.net 'unsafe-inline'; "
    "style-src https://cdn.jsdelivr.net 'unsafe-inline'; "
    "img-src 'self' data: https://fastapi.tiangolo.com"
)


class RequestId:
    """Gives each request an id, says it in `X-Request-ID` and in every log line, and logs the end.

    A caller's own `X-Request-ID` is kept when it is 1 to 128 letters, digits, dots, dashes or
    underscores; anything else is replaced.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if ACCEPTED_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, send_with_id)
            finally:
                log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    key=scope["state"].get("key"),
                    seconds=round(time.perf_counter() - started, 4),
                )


class SafeHeaders:
    """Headers of every answer: those the request's handling asked for, and those that keep it safe.

    A route that sets one of them itself is left alone, as the page does with its own policy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in scope["state"].get("headers", {}).items():
                    headers[name] = value
                for name, value in SAFE.items():
                    headers.setdefault(name, value)
                policy = DOCS_POLICY if scope["path"].endswith("/docs") else POLICY
                headers.setdefault("Content-Security-Policy", policy)
            await send(message)

        await self.app(scope, receive, send_with_headers)


class BoundedHead:
    """Refuses a request whose target or header fields are larger than any that makes sense."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            target = len(scope["raw_path"]) + len(scope["query_string"])
            fields = scope["headers"]
            size = sum(len(name) + len(value) for name, value in fields)
            if target > MOST_TARGET:
                told = f"The target has {target} bytes; at most {MOST_TARGET} are read."
                await refusal({**scope, "path": ""}, 414, told)(scope, receive, send)
                return
            if size > MOST_FIELD_BYTES or len(fields) > MOST_FIELDS:
                told = (
                    f"There are {len(fields)} header fields of {size} bytes; at most "
                    f"{MOST_FIELDS} of {MOST_FIELD_BYTES} are read."
                )
                await refusal(scope, 431, told)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class HeadAsGet:
    """Answers HEAD as GET would be, without the body (RFC 9110, 9.3.2).

    The server leaves the body out; a handler for which it costs much asks `is_head`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope["state"]["head"] = True
            as_get = {**scope, "method": "GET"}
            await self.app(as_get, receive, send)
            scope["route"] = as_get.get("route")
            return
        await self.app(scope, receive, send)


def is_head(request: Request) -> bool:
    """Whether a request that looks like a GET was a HEAD."""
    return bool(request.scope["state"].get("head", False))


class CatchAll:
    """Logs an exception nobody expected and answers a 500 problem that tells nothing of it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        # The outermost place that can still answer: whatever comes here is a defect of ours.
        except Exception:
            log.exception("unexpected error", method=scope["method"], path=scope["path"])
            if started:
                # The status is out; only a broken connection can say that the body is not whole.
                raise
            await unexpected(scope)(scope, receive, send)


class LingeringClose:
    """Reads on for a moment when an answer leaves before the request's body was read.

    Closing a socket with unread bytes resets the connection, and a client still sending may then
    lose the 413 that tells why. So the answer goes out whole, what still comes is thrown away for
    at most `seconds`, and then the connection closes.
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
            if not message.get("more_body", False):
                unread = False
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
