"""Which presets the live workers serve, and whether the image store takes an image.

A worker without the weights of its preset is not ready and says why in the register.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import structlog

from jobs.errors import StoreUnavailable
from jobs.store import BlobStore
from jobs.workers import WorkerInfo
from service.errors import PresetUnavailable

log = structlog.stdlib.get_logger(__name__)

# Asked more often, the last answer is repeated: the route needs no key, and each try is a write.
REMEMBER_S = 5.0


class Serving:
    """What the workers of one moment serve, by preset.

    `live` are the presets of workers that take jobs, start or stop: their jobs need only wait.
    `available` are those whose jobs a worker takes now. `reasons` says why none of a preset's
    workers can serve it.
    """

    def __init__(self, workers: Sequence[WorkerInfo]) -> None:
        self.live = {worker.preset for worker in workers if worker.reason is None}
        self.available = {worker.preset for worker in workers if worker.ready}
        self.reasons = {
            worker.preset: worker.reason
            for worker in workers
            if worker.reason is not None and worker.preset not in self.live
        }
        self._compiling = {
            worker.preset: f"its worker is {worker.condition}"
            for worker in workers
            if worker.state == "compiling" and worker.preset not in self.available
        }

    def reason(self, preset: str) -> str | None:
        """Why no worker takes the preset's jobs now; None where that is not known."""
        return self.reasons.get(preset) or self._compiling.get(preset)

    def check(self, preset: str) -> None:
        """Raises PresetUnavailable when its workers cannot serve it; without any, one may start."""
        if reason := self.reasons.get(preset):
            detail = f"{preset} is not served: {reason}."
            raise PresetUnavailable(detail, preset=preset, served=[*sorted(self.available)])


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
                try:
                    self._store.try_out()
                    self._works = True
                except StoreUnavailable as error:
                    log.warning("the image store does not work", detail=error.detail)
                    self._works = False
                self._until = time.monotonic() + REMEMBER_S
            return self._works
