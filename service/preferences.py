"""What a request says in headers about how it wants to be handled: Prefer and Idempotency-Key."""

from __future__ import annotations

import re

from starlette.datastructures import Headers

from service.errors import MalformedHeader

__all__ = ["LONGEST_WAIT_S", "idempotency_key", "wanted_wait"]

LONGEST_WAIT_S = 60
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def wanted_wait(headers: Headers) -> int | None:
    """The seconds of `Prefer: wait=N` (RFC 7240), at most 60; None without that preference.

    A preference that makes no sense is as none, as the RFC says; of several the first counts.
    """
    for line in headers.getlist("prefer"):
        for preference in line.split(","):
            name, _, value = preference.partition(";")[0].partition("=")
            value = value.strip().strip('"')
            if name.strip().lower() == "wait" and value.isascii() and value.isdigit():
                return min(int(value[:9]), LONGEST_WAIT_S)
    return None


def idempotency_key(headers: Headers) -> str | None:
    """The `Idempotency-Key` of a request, or None without one; raises MalformedHeader."""
    given = headers.getlist("idempotency-key")
    if not given:
        return None
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise MalformedHeader(
            "Idempotency-Key must be given once, as 1 to 255 visible ASCII characters, such as a "
            "UUID."
        )
    return given[0]
