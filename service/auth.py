"""The caller: the API key of a request, looked up in Redis and remembered for a few seconds."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass

from starlette.datastructures import Headers

from jobs.errors import QueueUnavailable
from jobs.keys import KeyInfo, Keys
from jobs.schema import ANYONE
from service.errors import Unauthorized

__all__ = ["ANONYMOUS", "Authenticator", "Caller", "token_of"]

# A revoked key works for at most this long.
REMEMBER_S = 3.0
# Enough for every key in use; more are guesses, and forgetting them all costs a lookup each.
MAX_REMEMBERED = 2000


@dataclass(frozen=True)
class Caller:
    """The client: `owner` is the key's id, or ANYONE without a key; limits as in `jobs.keys`."""

    owner: str = ANYONE
    max_queued: int | None = None
    per_minute: int | None = None


ANONYMOUS = Caller()


def token_of(headers: Headers) -> str | None:
    """The credential of a request: `Authorization: Bearer`, else `X-API-Key`; None without one.

    Other schemes are not for us but, say, for a proxy in front.
    """
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    return headers.get("x-api-key")


class Authenticator:
    """Blocking: call it from threads. Safe to share between them."""

    def __init__(self, keys: Keys, *, required: bool) -> None:
        self._keys = keys
        self._required = required
        self._lock = threading.Lock()
        # By digest: a key in clear text lives no longer than its request.
        self._cache: dict[bytes, tuple[float, KeyInfo | None]] = {}
        self._any_key: tuple[float | None, bool] = (None, False)

    def caller(self, token: str | None) -> Caller:
        """Who a credential belongs to.

        Raises Unauthorized for a wrong key, and for none while keys are asked for;
        QueueUnavailable.
        """
        if token is None or not (self.required() or Keys.looks_like_one(token)):
            if self.required():
                raise Unauthorized(
                    "An API key is needed: `Authorization: Bearer ssr_...` or `X-API-Key: ssr_...`."
                )
            return ANONYMOUS
        info = self._find(token)
        if info is None:
            raise Unauthorized("The API key is not known here, or it was revoked.", wrong=True)
        return Caller(info.id, info.max_queued, info.per_minute)

    def required(self) -> bool:
        """Whether requests without a key are refused: by the settings, or a key was ever made."""
        if self._required:
            return True
        until, known = self._any_key
        if until is None or until <= time.monotonic():
            try:
                known = self._keys.any()
            except QueueUnavailable:
                # What needs Redis fails by itself; what does not may go on as it was.
                if until is None:
                    raise
                return known
            self._any_key = (time.monotonic() + REMEMBER_S, known)
        return known

    def _find(self, token: str) -> KeyInfo | None:
        digest = hashlib.sha256(token.encode()).digest()
        now = time.monotonic()
        with self._lock:
            until, info = self._cache.get(digest, (0.0, None))
        if until > now:
            return info
        info = self._keys.find(token)
        with self._lock:
            if len(self._cache) >= MAX_REMEMBERED:
                self._cache.clear()
            self._cache[digest] = (now + REMEMBER_S, info)
        return info
