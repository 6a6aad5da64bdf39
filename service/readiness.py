"""Which presets the live workers serve, and whether the image store takes an image.

A worker without the weights of its preset is not ready and says why in the register.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence
from functools import lru_cache

import structlog

from jobs.errors import StoreUnavailable
from jobs.store import BlobStore
from jobs.workers import WorkerInfo
from service.problems import HTTPError

log = structlog.stdlib.get_logger(__name__)

# Asked more often, the last answer is repeated: the route needs no key, and each try is a write.
REMEMBER_S = 5.0
PAUSED = "it is paused; jobs are taken in and wait"
_one_at_a_time = threading.Lock()


class Serving:
    """What the workers of one moment serve, by preset.

    `live` are the presets of workers that take jobs, start or stop: their jobs need only wait.
    `available` are those whose jobs a worker takes now. `reasons` says why none of a preset's
    workers can serve it, `delays` why they do not yet: also a pause by the operator.
    """

    def __init__(self, workers: Sequence[WorkerInfo], paused: Collection[str] = ()) -> None:
        self.live = {worker.preset for worker in workers if worker.reason is None}
        self.available = {worker.preset for worker in workers if worker.ready}.difference(paused)
        self.reasons, self.delays = dict[str, str](), dict.fromkeys(paused, PAUSED)
        for worker in workers:
            if worker.reason is not None and worker.preset not in self.live:
                self.reasons[worker.preset] = worker.reason
            if worker.state == "compiling" and worker.preset not in self.available:
                self.delays.setdefault(worker.preset, f"its worker is {worker.condition}")

    def check(self, preset: str) -> None:
        """Raises HTTPError when its workers cannot serve it; without any, one may start. As only
        the operator can help, the problem has no `retry_after`."""
        if reason := self.reasons.get(preset):
            detail = f"{preset} is not served: {reason}."
            raise HTTPError(
                "preset-not-served", detail, preset=preset, served=[*sorted(self.available)]
            )


@lru_cache(maxsize=1)
def _try_out(store: BlobStore, _interval: int) -> bool:
    try:
        store.try_out()
    except StoreUnavailable as error:
        log.warning("the image store does not work", detail=error.detail)
        return False
    return True


def store_works(store: BlobStore) -> bool:
    """Whether a blob could be written and removed, now or some seconds ago. Blocking."""
    with _one_at_a_time:
        return _try_out(store, int(time.monotonic() // REMEMBER_S))
