"""Whether the image store takes an image now, as far as a byte can tell."""

from __future__ import annotations

import threading
import time

import structlog

from jobs.errors import StoreUnavailable
from jobs.store import BlobStore

__all__ = ["StoreProbe"]

log = structlog.stdlib.get_logger(__name__)

# Whoever asks more often is told what was found last: anybody may ask, and each try is a write.
REMEMBER_S = 5.0


class StoreProbe:
    """Blocking: call it from threads. Safe to share between them."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._until: float | None = None
        self._works = False

    def works(self) -> bool:
        """Whether a blob could be written and removed, now or some seconds ago."""
        with self._lock:
            if self._until is None or self._until <= time.monotonic():
                self._works = self._try()
                self._until = time.monotonic() + REMEMBER_S
            return self._works

    def _try(self) -> bool:
        try:
            self._store.try_out()
        except StoreUnavailable as error:
            log.warning("the image store does not work", detail=error.detail)
            return False
        return True
