"""What the service calls because a client names it: https, and public addresses only.

A client's URL could make this server talk to its own network (SSRF). So all addresses that a name
stands for when the call is made must be public, and the connection goes to one of these, whatever
the name stands for a moment later.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import anyio
import httpx
from anyio.to_thread import run_sync

from jobs.settings import Settings

# Questions to the resolver at once, in threads of their own: requests need the others.
LOOKUPS = 16
LONGEST_URL = 2000
_NAME = re.compile(
    r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?", re.I
)
# IPv6 addresses that lead to an IPv4 one, which is their last 32 bits.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# All that is given out for hosts; translations, and everything that is local, lie outside.
_UNICAST = ipaddress.IPv6Network("2000::/3")
# Of IANA's registries of special purposes, what `is_global` lets pass in some version of Python:
# protocol assignments, the way back from 6to4, documentation.
_SPECIAL = [
    ipaddress.ip_network(block)
    for block in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "3fff::/20")
]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class BadTarget(ValueError):
    """A URL that is not to be called; the message goes on from the name of its field."""


@dataclass(frozen=True, slots=True)
class Target:
    """An https address in its parts; `path` includes the query."""

    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str, *, allow_private: bool) -> Target:
        """Takes a URL apart; raises BadTarget for what is wrong whatever DNS says.

        `allow_private` lets addresses and names without a dot pass, for closed networks.
        """
        if len(url) > LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url:
            raise BadTarget(f"must be at most {LONGEST_URL} printable ASCII characters")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise BadTarget(f"is no URL: {error}") from None
        if parts.scheme != "https" or not host:
            raise BadTarget("must begin with https:// and a host")
        if parts.username is not None or parts.password is not None:
            raise BadTarget("must not hold a user or a password")
        if parts.fragment or "\\" in url:
            raise BadTarget("must not have a fragment or a backslash")
        _check_host(host, allow_private)
        query = f"?{parts.query}" if parts.query else ""
        return cls(host, 443 if port is None else port, (parts.path or "/") + query)

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 443 else f"{host}:{self.port}"


def _check_host(host: str, allow_private: bool) -> None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if not allow_private and not _NAME.fullmatch(host.removesuffix(".")):
            raise BadTarget("must name a host that others can reach, such as example.org") from None
        return
    if not allow_private and not is_public(address):
        raise BadTarget(f"must lead to a public address; {host} is none")


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, whatever it is wrapped in."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address not in _UNICAST:
            return False
    # An address is in no network of the other version.
    is_special = address.is_multicast or any(address in block for block in _SPECIAL)
    return address.is_global and not is_special


def lookup(host: str, port: int) -> list[Address]:
    """All addresses of a name, as this machine resolves it. Blocking; raises OSError."""
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise OSError(f"{host} cannot be resolved: {error}.") from error
    # A scope, as in fe80::1%eth0, names a network of this machine: never public.
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries]


class Egress:
    """Calls within what STABLESR_EGRESS allows; shared by all that call."""

    def __init__(self, settings: Settings) -> None:
        self._is_off = settings.egress == "none"
        self._allow_private = settings.egress == "any"
        self._tls = httpx.create_ssl_context()
        self._lookups = anyio.CapacityLimiter(LOOKUPS)

    def target(self, url: str) -> Target:
        """The URL's parts; raises BadTarget for what is wrong whatever DNS says."""
        if self._is_off:
            raise BadTarget("must be left out: this server calls no addresses of clients")
        return Target.parse(url, allow_private=self._allow_private)

    @asynccontextmanager
    async def request(
        self,
        method: str,
        target: Target,
        fields: Mapping[str, str],
        timeout: httpx.Timeout,
        content: bytes | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """The answer, whose body is not read yet. No cookie, proxy, redirect or credential.

        Raises BadTarget for a name that stands for an address which is not public, OSError for one
        that stands for none, httpx.HTTPError.
        """
        question = partial(lookup, target.host, target.port)
        # Nothing can cut the system's resolver off; its answer is not waited for any longer.
        addresses = await run_sync(question, abandon_on_cancel=True, limiter=self._lookups)
        if not self._allow_private and (inside := [a for a in addresses if not is_public(a)]):
            raise BadTarget(f"stands for {inside[0]}, which is not public")
        host = f"[{addresses[0]}]" if addresses[0].version == 6 else str(addresses[0])
        async with (
            # No proxy from the environment: it would connect to wherever the name leads it.
            httpx.AsyncClient(verify=self._tls, timeout=timeout, trust_env=False) as client,
            # To the address that was looked at, with the certificate of the name.
            client.stream(
                method,
                f"https://{host}:{target.port}{target.path}",
                content=content,
                headers={**fields, "Host": target.authority},
                extensions={"sni_hostname": target.host},
            ) as answer,
        ):
            yield answer
