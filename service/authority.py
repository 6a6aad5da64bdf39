"""Under which names the service answers: what keeps web pages of others off an open local one.

A page can name its own host and have that name resolve to 127.0.0.1 (DNS rebinding): the browser
then takes the service for the page's own. It can also post a form there without reading the
answer. Both say so: in Host, which is not a local name, and in Origin, which is not the Host.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from anyio.to_thread import run_sync
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from jobs.errors import JobsError, QueueUnavailable
from jobs.settings import Settings
from service.dependencies import Services
from service.errors import ForeignHost, ForeignOrigin
from service.problems import respond

__all__ = ["KnownAuthority", "is_loopback"]

ANY = "*"
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def is_loopback(host: str) -> bool:
    """Whether a host, with or without brackets, means this machine and no other."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        # A name may mean any address.
        return False


class KnownAuthority:
    """Refuses a Host that is not known, and what a page of another origin would change.

    Known are the local names and those of `allowed_hosts`. Without any there, it only watches over
    a service that listens on loopback and asks for no key.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        names = (name.strip().lower() for name in settings.allowed_hosts.split(","))
        self._allowed = frozenset(names) - {""}
        self._idle = ANY in self._allowed or not (
            self._allowed or (is_loopback(settings.host) and not settings.require_key)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._idle:
            error = self._fault(scope)
            if error is not None and (self._allowed or await run_sync(_is_open, scope)):
                await respond(Request(scope), error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _fault(self, scope: Scope) -> JobsError | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        name = _name(f"//{host}")
        if name not in self._allowed and not is_loopback(name):
            return ForeignHost(
                f"The service does not answer as {host[:100]!r}; ask it as localhost or 127.0.0.1, "
                "or have its operator name the host in STABLESR_ALLOWED_HOSTS."
            )
        if scope["method"] in SAFE or origin is None:
            return None
        if origin.partition("://")[2].lower() == host.lower() or _name(origin) in self._allowed:
            return None
        return ForeignOrigin(
            f"A page of {origin[:100]!r} may not do this; only a page of {host[:100]!r} may, or of "
            "a host in STABLESR_ALLOWED_HOSTS."
        )


def _name(url: str) -> str:
    """The host's name or address, without its port; empty for what has none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_open(scope: Scope) -> bool:
    """Whether no key is asked for, or that is not known."""
    services: Services = scope["state"]["services"]
    try:
        return not services.authenticator.required()
    except QueueUnavailable:
        return True
