"""How both clients set up httpx and build its requests."""

from __future__ import annotations

from typing import Any

import httpx

from client.effects import Send

__all__ = ["SILENCE_S", "request_of", "settings"]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

SILENCE_S = 60.0
"""How long a server may be silent, such as while it takes in an upload."""
CONNECT_S = 10.0
"""How long it may take to accept a connection; later it will not."""


def settings(server: str, api_key: str | None) -> tuple[str, dict[str, Any]]:
    """How messages call the server, and the arguments of `httpx.Client` or `httpx.AsyncClient`.

    Raises:
        ValueError: the address is none.
    """
    try:
        url = httpx.URL(server)
    except httpx.InvalidURL as error:
        raise ValueError(f"{server} is no address: {error}.") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(
            f"{server}: an address begins with http:// or https://, such as http://127.0.0.1:8000."
        )
    headers = {"Accept": "application/json, application/problem+json"}
    if api_key is not None:
        if not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("The API key holds characters that no key has.")
        headers["Authorization"] = f"Bearer {api_key}"
    return str(url.copy_with(userinfo=b"")).rstrip("/"), {
        "base_url": url,
        "headers": headers,
        "timeout": httpx.Timeout(SILENCE_S, connect=CONNECT_S),
        # A proxy of the environment cannot reach this machine's own loopback address.
        "trust_env": url.scheme == "https" or url.host not in LOOPBACK,
    }


def request_of(http: httpx.Client | httpx.AsyncClient, send: Send) -> httpx.Request:
    """The request that an operation asks for."""
    timeout = httpx.USE_CLIENT_DEFAULT if send.timeout_s is None else httpx.Timeout(send.timeout_s)
    return http.build_request(
        send.method,
        send.path,
        params=send.params or None,
        headers=send.headers,
        data=send.fields or None,
        files=send.files or None,
        timeout=timeout,
    )
