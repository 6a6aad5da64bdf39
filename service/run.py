"""`stablesr serve`: the application under uvicorn."""

from __future__ import annotations

import ipaddress

import uvicorn

from jobs.logs import configure_logging
from jobs.settings import Settings
from service.app import create_app
from service.errors import OpenAddress

__all__ = ["check_address", "main", "server"]

# Long enough for an upload or a download in flight, shorter than what container hosts allow.
SHUTDOWN_S = 8


def main(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises OpenAddress when the host is not loopback and STABLESR_ALLOW_OPEN is not set.
    """
    check_address(settings)
    configure_logging(settings)
    server(settings).run()


def server(settings: Settings) -> uvicorn.Server:
    """The configured server, not yet started. It leaves logging as it finds it."""
    return uvicorn.Server(
        uvicorn.Config(
            create_app(settings),
            host=settings.host,
            port=settings.port,
            log_config=None,
            # Each request has its line already, with its id.
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
    )


def check_address(settings: Settings) -> None:
    """Refuses to serve strangers unless told to: there are no keys yet, so anyone could use it."""
    if settings.allow_open or _is_loopback(settings.host):
        return
    raise OpenAddress(
        f"STABLESR_HOST={settings.host} can be reached from other machines, and the service asks "
        "nobody for a key. Set STABLESR_ALLOW_OPEN=true if that is meant, or use 127.0.0.1."
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        # A name may mean any address.
        return False
