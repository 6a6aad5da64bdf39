"""`stablesr serve`: the application under uvicorn, and what a slow client may hold of it.

Uvicorn's `timeout_keep_alive` begins after an answer, and its `limit_concurrency` refuses requests,
not connections. So a client that sends nothing, or its head byte by byte, or that does not read its
answer, would hold a connection for ever, and one address could take them all.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

import h11
import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from jobs.errors import InvalidSettings
from jobs.logs import configure_logging
from jobs.redis_probe import check_kind
from jobs.settings import Settings
from service.app import create_app
from service.middleware import is_loopback
from service.problems import ProblemResponse
from service.ratelimit import address_key

log = structlog.stdlib.get_logger(__name__)

# Long enough for an upload or a download in flight, shorter than what container hosts allow.
SHUTDOWN_S = 8
MAX_HEAD_BYTES = 32 * 1024
MAX_UNSENT_BYTES = 64 * 1024
# How long a request's head may take to arrive, and how long a client may take nothing of what is
# sent to it.
HEAD_TIMEOUT_S = 10.0
SEND_TIMEOUT_S = 30.0


def main(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT; raises InvalidSettings."""
    check_address(settings)
    configure_logging(settings)
    check_kind(settings)
    server(settings).run()


def check_address(settings: Settings) -> None:
    """Refuses to listen beyond loopback unless keys are required or this is allowed explicitly.

    Existing keys are not enough: a Redis that loses its data would open the service.
    """
    if settings.access != "auto" or is_loopback(settings.host):
        return
    raise InvalidSettings(
        f"STABLESR_HOST={settings.host} can be reached from other machines, and the service "
        "requires no key. Make keys with `stablesr keys create` and set STABLESR_ACCESS=keys; "
        "or set STABLESR_ACCESS=open if open is meant, or use 127.0.0.1."
    )


def server(settings: Settings) -> uvicorn.Server:
    """The configured server, not yet started. It leaves logging as it is."""
    return _Server(
        uvicorn.Config(
            create_app(settings),
            host=settings.host,
            port=settings.port,
            log_config=None,
            # Each request has its line already, with its id.
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_S,
            # The client is the peer, unless a trusted proxy says otherwise.
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=settings.trusted_proxies or None,
            # Of the two parsers the one that bounds a request's head, in bytes and in time.
            http=_protocol(settings),
            ws="none",
        )
    )


class _Server(uvicorn.Server):
    """Ends waiting requests first: their connections would hold up the shutdown."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app: Any = self.config.app
        app.state.listener.leave()
        await super().shutdown(sockets)


class StrictConnection(h11.Connection):
    """Refuses a request whose end is told in two ways, which a proxy in front may read in the
    other (RFC 9112, 6.1). Joins an answer's head and the first of its body, which uvicorn writes
    apart: one packet."""

    _head: Sequence[bytes] = ()

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            if b"transfer-encoding" in names and (
                b"content-length" in names or event.http_version < b"1.1"
            ):
                raise h11.RemoteProtocolError("the request is framed in two ways")
        return event

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes]:
        pieces = [*self._head, *(super().send_with_data_passthrough(event) or ())]
        is_head = isinstance(event, h11.Response)
        self._head = pieces if is_head else ()
        return [] if is_head else pieces


class Deadline:
    """Calls `action` so many seconds after `start`, unless `cancel` was called."""

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


def _protocol(settings: Settings) -> type[H11Protocol]:
    """The protocol class for uvicorn: HEAD_TIMEOUT_S for a request's head and for what still
    comes of a body after its refusal, SEND_TIMEOUT_S for a client to take what is buffered for
    it (some 100 kB), `max_connections` at once and half of them for one address.

    For one too many another is closed that has no request under way: the oldest of the address
    that has the most. So those who open many and ask for little push out one another."""
    limit = settings.max_connections
    # Behind a proxy all have its address; the proxy has limits of its own.
    share = limit + 1 if settings.trusted_proxies else max(1, limit // 2)
    # By address, the oldest first.
    members: dict[str, dict[Protocol, None]] = {}

    class Protocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
            super().connection_made(transport)
            self.conn = StrictConnection(h11.SERVER, MAX_HEAD_BYTES)
            # What the kernel takes ahead of a slow client is little, so that its progress is seen.
            connection = transport.get_extra_info("socket")
            if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
                option = socket.TCP_NOTSENT_LOWAT
                connection.setsockopt(socket.IPPROTO_TCP, option, MAX_UNSENT_BYTES)
            self._head = Deadline(self.loop, HEAD_TIMEOUT_S, self._give_up)
            # Closing would wait for what is buffered, that is, for ever.
            self._reader = Deadline(self.loop, SEND_TIMEOUT_S, self._abort)
            self._address = address_key(self.client[0] if self.client else None)
            members.setdefault(self._address, {})[self] = None
            self._head.start()
            if len(members[self._address]) > share:
                rivals, status = [members[self._address]], 429
                detail = f"One client may have {share} connections at once."
            elif len(self.connections) > limit:
                rivals, status = sorted(members.values(), key=len, reverse=True), 503
                detail = f"All {limit} connections of this server are in use."
            else:
                return
            surplus = next(each for every in rivals for each in every if each._is_idle())
            if surplus is self:
                # Some end within moments.
                self._refuse(status, detail, retry=5)
            else:
                surplus.transport.close()
            surplus._leave()

        def _is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _leave(self) -> None:
            """Gives its place back."""
            self.connections.discard(self)
            if self in (every := members.get(self._address, {})):
                del every[self]
                if not every:
                    del members[self._address]

        def connection_lost(self, exc: Exception | None) -> None:
            self._leave()
            self._head.cancel()
            self._reader.cancel()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._reader.start()

        def resume_writing(self) -> None:
            self._reader.cancel()
            super().resume_writing()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            if self.transport.get_write_buffer_size():
                self._reader.start()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE or self._body_is_refused():
                # Part of the next request's head on a connection that is kept.
                self._head.start()
            else:
                self._head.cancel()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._body_is_refused():
                # Uvicorn reads on and discards it: closing at once could lose the answer.
                self._head.start()

        def _body_is_refused(self) -> bool:
            return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "This is no HTTP/1.1 request, or its head is too large.")

        def _give_up(self) -> None:
            if self.conn.trailing_data[0]:
                self._refuse(408, f"The head did not come within {HEAD_TIMEOUT_S:g} seconds.")
            else:
                self.transport.close()

        def _abort(self) -> None:
            log.info("the client does not read", client=self.client, seconds=SEND_TIMEOUT_S)
            self.transport.abort()

        def _refuse(self, status: int, detail: str, *, retry: int | None = None) -> None:
            """A whole answer, for what never becomes a request of the application."""
            fields, extra = {"Connection": "close"}, {"retry_after": retry} if retry else None
            response = ProblemResponse({"path": ""}, status, detail, extra=extra, headers=fields)
            phrase = HTTPStatus(status).phrase.encode()
            head = h11.Response(status_code=status, headers=response.raw_headers, reason=phrase)
            # Else an answer is on its way already, and all that is left is to close.
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Protocol
