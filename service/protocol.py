"""HTTP/1.1 on a connection, with what uvicorn leaves open: what a slow or silent client may hold.

A client that connects and sends nothing, or its head byte by byte, would hold a connection for
ever, and so would one that does not read its answer; once the application has the request,
`service.uploads` watches over its body.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterable, Iterator
from http import HTTPStatus

import h11
import structlog
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["protocol"]

log = structlog.stdlib.get_logger(__name__)


# When a connection is refused because there are too many, some end within moments.
RETRY_S = 5
NOT_SENT = 64 * 1024


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
        _head_timer: asyncio.TimerHandle | None = None
        _send_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
            super().connection_made(transport)
            _hold_little(transport)
            if len(self.connections) > max_connections:
                said = f"All {max_connections} connections of this server are in use."
                self._refuse(503, said, [(b"Retry-After", str(RETRY_S).encode())])
            else:
                self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_came()
            self._taken()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._await_reader()

        def resume_writing(self) -> None:
            self._taken()
            super().resume_writing()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            if self.transport.get_write_buffer_size():
                self._await_reader()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._head_came()
            elif self._head_timer is None:
                # Part of the next request's head on a connection that is kept.
                self._await_head()

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "This is no HTTP/1.1 request, or its head is too large.")

        def _refuse(
            self, status: int, detail: str, headers: Iterable[tuple[bytes, bytes]] = ()
        ) -> None:
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                for event in _problem(status, detail, headers):
                    self.transport.write(self.conn.send(event) or b"")
            # Else an answer is on its way already, and all that is left to say is goodbye.
            self.transport.close()

        def _await_head(self) -> None:
            self._head_timer = self.loop.call_later(head_timeout_s, self._give_up)

        def _give_up(self) -> None:
            begun, _ = self.conn.trailing_data
            if begun:
                self._refuse(408, f"The head did not come within {head_timeout_s:g} seconds.")
            else:
                self.transport.close()

        def _head_came(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _await_reader(self) -> None:
            if self._send_timer is None:
                # Closing would wait for what is buffered, that is, for ever.
                self._send_timer = self.loop.call_later(send_timeout_s, self._cut)

        def _cut(self) -> None:
            log.info("the client does not read", client=self.client, seconds=send_timeout_s)
            self.transport.abort()

        def _taken(self) -> None:
            if self._send_timer is not None:
                self._send_timer.cancel()
                self._send_timer = None

    return Protocol


def _hold_little(transport: asyncio.Transport) -> None:
    """Keeps what the kernel takes ahead of a slow client small, so that its progress is seen."""
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT)


def _problem(status: int, detail: str, more: Iterable[tuple[bytes, bytes]]) -> Iterator[h11.Event]:
    """A whole answer, for what never becomes a request of the application."""
    phrase = HTTPStatus(status).phrase
    body = json.dumps(
        {"type": "about:blank", "title": phrase, "status": status, "detail": detail}
    ).encode()
    headers = [
        (b"Content-Type", b"application/problem+json"),
        (b"Content-Length", str(len(body)).encode()),
        (b"Connection", b"close"),
        *more,
    ]
    yield h11.Response(status_code=status, headers=headers, reason=phrase.encode())
    yield h11.Data(data=body)
    yield h11.EndOfMessage()
