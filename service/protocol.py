"""HTTP/1.1 on a connection, with what uvicorn leaves open: what a slow or silent client may hold.

Uvicorn's `timeout_keep_alive` begins after an answer, and its `limit_concurrency` refuses a request
that has come. So a client that connects and sends nothing, or its head byte by byte, would hold a
connection for ever, and so would one that does not read its answer. Once the application has the
request, `service.uploads` watches over its body.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from http import HTTPStatus

import h11
import structlog
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["protocol"]

log = structlog.stdlib.get_logger(__name__)

# When a connection is refused because there are too many, some end within moments.
RETRY_S = 5
NOT_SENT = 64 * 1024


class Deadline:
    """Calls `action` when so many seconds have passed since `start`, unless `cancel` was called."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, seconds: float, action: Callable[[], None]
    ) -> None:
        self._loop, self._seconds, self._action = loop, seconds, action
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """No change when it runs already."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._action)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def protocol(
    head_timeout_s: float, send_timeout_s: float, max_connections: int
) -> type[H11Protocol]:
    """The protocol class for uvicorn.

    Args:
        head_timeout_s: seconds for a request's head, from its first moment.
        send_timeout_s: seconds for a client to take what is buffered for it, some 100 kB.
        max_connections: connections at once; further ones are answered with 503 and closed.
    """

    class Protocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
            super().connection_made(transport)
            _limit_unsent(transport)
            self._head = Deadline(self.loop, head_timeout_s, self._give_up)
            # Closing would wait for what is buffered, that is, for ever.
            self._reading = Deadline(self.loop, send_timeout_s, self._cut)
            if len(self.connections) > max_connections:
                detail = f"All {max_connections} connections of this server are in use."
                self._refuse(503, detail, (b"Retry-After", str(RETRY_S).encode()))
            else:
                self._head.start()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head.cancel()
            self._reading.cancel()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._reading.start()

        def resume_writing(self) -> None:
            self._reading.cancel()
            super().resume_writing()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            if self.transport.get_write_buffer_size():
                self._reading.start()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:
                # Part of the next request's head on a connection that is kept.
                self._head.start()
            else:
                self._head.cancel()

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "This is no HTTP/1.1 request, or its head is too large.")

        def _give_up(self) -> None:
            if self.conn.trailing_data[0]:
                self._refuse(408, f"The head did not come within {head_timeout_s:g} seconds.")
            else:
                self.transport.close()

        def _cut(self) -> None:
            log.info("the client does not read", client=self.client, seconds=send_timeout_s)
            self.transport.abort()

        def _refuse(self, status: int, detail: str, *headers: tuple[bytes, bytes]) -> None:
            """A whole answer, for what never becomes a request of the application."""
            phrase = HTTPStatus(status).phrase
            problem = {"type": "about:blank", "title": phrase, "status": status, "detail": detail}
            body = json.dumps(problem).encode()
            fields = [
                (b"Content-Type", b"application/problem+json"),
                (b"Content-Length", str(len(body)).encode()),
                (b"Connection", b"close"),
                *headers,
            ]
            # Else an answer is on its way already, and all that is left is to close.
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                for event in (
                    h11.Response(status_code=status, headers=fields, reason=phrase.encode()),
                    h11.Data(data=body),
                    h11.EndOfMessage(),
                ):
                    self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Protocol


def _limit_unsent(transport: asyncio.Transport) -> None:
    """Keeps what the kernel takes ahead of a slow client small, so that its progress is seen."""
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT)
