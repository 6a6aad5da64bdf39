"""A Redis that hangs is waited for once, not by every call of every request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Self, TypeVar

from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, TimeoutError
from redis.retry import Retry

__all__ = ["Breaker", "StillSilent"]

T = TypeVar("T")


class StillSilent(TimeoutError):
    """Redis did not answer a moment ago, so it was not asked."""


class Breaker(Retry):
    """How often the connections of one client try, and when not at all.

    A lost connection is tried once more: Redis may have restarted since. A call without an answer
    in time is not; after it every call fails at once for `silent_s` seconds, in whatever thread.
    """

    def __init__(self, silent_s: float = 1.0) -> None:
        super().__init__(NoBackoff(), 1, supported_errors=(ConnectionError,))
        self._silent_s = silent_s
        self._lock = threading.Lock()
        self._until = 0.0

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: each connection copies its retries, and all must know of one another."""
        return self

    def call_with_retry(
        self,
        do: Callable[[], T],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> T:
        with self._lock:
            silent = time.monotonic() < self._until
        if silent:
            raise StillSilent(f"It gave no answer within the last {self._silent_s:g} seconds")
        try:
            return super().call_with_retry(do, fail, is_retryable, with_failure_count)
        except StillSilent:
            raise
        except TimeoutError:
            with self._lock:
                self._until = time.monotonic() + self._silent_s
            raise
