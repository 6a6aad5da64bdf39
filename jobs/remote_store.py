"""A remote store's client with limits of its own, its errors in a sentence, and its silence."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from .errors import StoreUnavailable

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

# For who is told no place.
TAKES_NONE, NO_ANSWER = "takes no images", "gives no answer"
# What a store says of an error, in XML.
_FAULT = re.compile(r"<Code>([^<]*)</Code>\s*<Message>([^<]*)</Message>")
# obstore takes these from the environment too, but not beside any option that a program sets.
_CLIENT_OPTIONS = (
    "allow_http",
    "allow_invalid_certificates",
    "proxy_ca_certificate",
    "proxy_excludes",
    "proxy_url",
)
_PREFIXES = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}


class StoreBreaker:
    """A store that gives no answer is waited for by a few calls, not by every one.

    After a call that failed slowly every call fails at once for `silent_s` seconds; then one may
    ask, and what becomes of it decides. With 0 nothing is refused. Safe to share between threads.
    """

    def __init__(self, silent_s: float) -> None:
        self._silent_s = silent_s
        self._until: float | None = None
        self._lock = threading.Lock()

    def check(self, *, asks: bool = True) -> None:
        """Raises StoreUnavailable while the store is not to be asked."""
        with self._lock:
            if self._until is None:
                return
            if time.monotonic() < self._until:
                raise StoreUnavailable(
                    f"The image store gave no answer within the last {self._silent_s:g} seconds.",
                    clause=NO_ANSWER,
                    retry_after=5,
                )
            if asks:
                self._until = time.monotonic() + self._silent_s

    def note(self, *, is_silent: bool) -> None:
        with self._lock:
            self._until = time.monotonic() + self._silent_s if is_silent else None


def open_remote(url: str, answer_s: float, *, again_s: float) -> ObjectStore:
    """The store of this URL, with so many seconds for an answer; what failed at once is tried again
    for `again_s`."""
    prefix = _PREFIXES[url.partition(":")[0]]
    values = {name: os.environ.get(f"{prefix}_{name.upper()}") for name in _CLIENT_OPTIONS}
    options: dict[str, Any] = {name: value for name, value in values.items() if value}
    # From the request to the last byte of the answer, so also while a client is slow to take it.
    options |= {"timeout": timedelta(days=1), "read_timeout": timedelta(seconds=answer_s)}
    options["connect_timeout"] = timedelta(seconds=min(2, answer_s))
    retry: RetryConfig = {"retry_timeout": timedelta(seconds=again_s)}
    return from_url(url, client_options=cast("ClientConfig", options), retry_config=retry)


@contextmanager
def store_errors(verb: str, key: str) -> Iterator[None]:
    """Turns what obstore raises into StoreUnavailable."""
    try:
        yield
    except (BaseError, OSError) as error:
        clause = TAKES_NONE
        # obstore adds its internals below the first line.
        reason = str(error).partition("\n")[0].rstrip(".")
        if fault := _FAULT.search(str(error)):
            reason, clause = f"{fault[2].rstrip('.')} ({fault[1]})", f"{TAKES_NONE} ({fault[1]})"
        elif "kind: Timeout" in str(error):
            reason, clause = "it gave no answer in time", NO_ANSWER
        raise StoreUnavailable(
            f"The image store could not {verb} {key!r}: {reason}.", clause=clause, retry_after=5
        ) from error
