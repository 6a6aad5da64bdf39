"""HTTP/1.1 on a connection, with what uvicorn leaves open: a request's head must come in time.

A client that connects and sends nothing, or its head byte by byte, would hold a connection for
ever; once the application has the request, `service.uploads` watches over its body.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["protocol"]


def protocol(head_timeout_s: float) -> type[H11Protocol]:
    """The protocol class for uvicorn; a head may take so many seconds from its first moment."""

    class Protocol(H11Protocol):
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_came()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._head_came()
            elif self._head_timer is None:
                # Part of the next request's head on a connection that is kept.
                self._await_head()

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "This is no HTTP/1.1 request, or its head is too large.")

        def _refuse(self, status: int, detail: str) -> None:
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                for event in _problem(status, detail):
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

    return Protocol


def _problem(status: int, detail: str) -> Iterator[h11.Event]:
    """A whole answer, for what never becomes a request of the application."""
    phrase = HTTPStatus(status).phrase
    body = json.dumps(
        {"type": "about:blank", "title": phrase, "status": status, "detail": detail}
    ).encode()
    headers = [
        (b"Content-Type", b"application/problem+json"),
        (b"Content-Length", str(len(body)).encode()),
        (b"Connection", b"close"),
    ]
    yield h11.Response(status_code=status, headers=headers, reason=phrase.encode())
    yield h11.Data(data=body)
    yield h11.EndOfMessage()
