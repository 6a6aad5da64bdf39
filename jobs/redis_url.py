"""What STABLESR_REDIS_URL says: one server, or the primary that Sentinel names at the moment.

    redis://[USER:PASSWORD@]HOST[:PORT][/DB]                               also rediss://, unix://
    redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT],.../NAME[/DB]   also rediss+sentinel://

`?replicas=N` is ours: a job is accepted once N replicas have it. `sentinel_username` and
`sentinel_password` are for the Sentinels; all other members of the query are redis-py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from redis import connection

SCHEMES = ("redis://", "rediss://", "unix://", "redis+sentinel://", "rediss+sentinel://")
SENTINEL_PORT = 26379
# Without types in redis-py.
_parse_url: Any = connection.parse_url


@dataclass(frozen=True)
class RedisTarget:
    """`url` is for redis-py. Where there are `sentinels`, (host, port) each, it is empty: then
    `options` are those of the connections to the server that they call `primary`."""

    url: str
    replicas: int
    sentinels: tuple[tuple[str, int], ...] = ()
    primary: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)


def parse_redis_url(url: str) -> RedisTarget:
    """Raises ValueError with a clause, which never repeats a part of the URL: all of it may be a
    password that is not encoded."""
    parts = urlsplit(url)
    members = parts.query.split("&")
    counts = [member.partition("=")[2] for member in members if member.startswith("replicas=")]
    if not all(count.isascii() and count.isdigit() for count in counts):
        raise ValueError("its replicas must be a number")
    query = "&".join(member for member in members if not member.startswith("replicas="))
    replicas = int(counts[-1]) if counts else 0
    scheme, _, is_sentinel = parts.scheme.partition("+")
    try:
        if not is_sentinel:
            plain = parts._replace(query=query).geturl() if counts else url
            _parse_url(plain)
            return RedisTarget(plain, replicas)
        userinfo, at, hosts = parts.netloc.rpartition("@")
        primary, _, database = parts.path.removeprefix("/").partition("/")
        options = _parse_url(f"redis://{userinfo}{at}sentinel/{database}?{query}")
        sentinels = tuple(_address(host) for host in hosts.split(","))
    except ValueError:
        raise ValueError(
            "it must be a URL in which : / @ of a password are written %3A %2F %40, a port is a "
            "number, and only members of redis-py's URLs follow the ?"
        ) from None
    if not primary or not all(host for host, _ in sentinels):
        raise ValueError(
            "it must end with /NAME, as the Sentinels call the primary, after their addresses: "
            "redis+sentinel://HOST:26379,HOST:26379/NAME"
        )
    del options["host"]
    tls = {"ssl": True} if scheme == "rediss" else {}
    # A database with a certificate of a private authority has Sentinels with one of it, too.
    secrets = {name: value for name, value in options.items() if name.startswith("ssl_")}
    for name in ("username", "password"):
        if (value := options.pop(f"sentinel_{name}", None)) is not None:
            secrets[name] = value
    return RedisTarget(
        "", replicas, sentinels, unquote(primary), {**options, **tls}, {**secrets, **tls}
    )


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = text, str(SENTINEL_PORT)
    return host.strip("[]"), int(port)
