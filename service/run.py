"""`stablesr serve`: the application under uvicorn."""

from __future__ import annotations

import socket

import uvicorn

from jobs.logs import configure_logging
from jobs.settings import Settings
from service.app import create_app
from service.authority import is_loopback
from service.errors import OpenAddress
from service.listener import Listener
from service.protocol import protocol

__all__ = ["check_address", "main", "server"]

# Long enough for an upload or a download in flight, shorter than what container hosts allow.
SHUTDOWN_S = 8
MAX_HEAD_BYTES = 32 * 1024
# How long a request's head may take to arrive, and how long a client may take nothing of what is
# sent to it.
HEAD_TIMEOUT_S = 10.0
SEND_TIMEOUT_S = 30.0


def main(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises OpenAddress when the host is not loopback and STABLESR_ALLOW_OPEN is not set.
    """
    check_address(settings)
    configure_logging(settings)
    server(settings).run()


def server(settings: Settings) -> uvicorn.Server:
    """The configured server, not yet started. It leaves logging as it finds it."""
    app = create_app(settings)
    return _Server(
        app.state.listener,
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            # Each request has its line already, with its id.
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_S,
            # Who asks is who is connected, unless a proxy that is named says otherwise.
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=settings.trusted_proxies or None,
            # Of the two parsers the one that bounds a request's head, in bytes and in time.
            http=protocol(HEAD_TIMEOUT_S, SEND_TIMEOUT_S, settings.max_connections),
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            ws="none",
        ),
    )


class _Server(uvicorn.Server):
    """Lets those who wait for jobs end first: their connections would hold up the shutdown."""

    def __init__(self, listener: Listener, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._listener = listener

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._listener.leave()
        await super().shutdown(sockets)


def check_address(settings: Settings) -> None:
    """Refuses to serve strangers unless keys are asked for, or it is told that this is meant.

    Keys that were made are not enough: a Redis that loses its data would open the service.
    """
    if settings.allow_open or settings.require_key or is_loopback(settings.host):
        return
    raise OpenAddress(
        f"STABLESR_HOST={settings.host} can be reached from other machines, and the service asks "
        "nobody for a key. Make keys with `stablesr keys create` and set "
        "STABLESR_REQUIRE_KEY=true; or set STABLESR_ALLOW_OPEN=true if open is meant, or use "
        "127.0.0.1."
    )
