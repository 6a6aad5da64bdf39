"""Which presets the live workers serve, and whether the image store takes an image.

A worker without the weights of its preset is not ready and says why in the register. Requests for
that preset are refused with the reason: waiting helps only once the operator has acted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from jobs.errors import StoreUnavailable
from jobs.store import BlobStore
from jobs.workers import WorkerInfo
from service.errors import PresetUnavailable


@dataclass(frozen=True)
class Serving:
    """The workers of one moment, by preset.

    `live` are the presets of workers that take jobs, start or stop, `available` of those that take
    jobs now; `reasons` has the presets all of whose workers are not ready, `compiling` those of
    workers that compile, with how far they are, where none takes jobs yet.
    """

    live: frozenset[str]
    available: frozenset[str]
    reasons: Mapping[str, str]
    compiling: Mapping[str, str]

    @classmethod
    def of(cls, workers: Sequence[WorkerInfo]) -> Serving:
        """What these workers serve."""
        # A worker that starts or stops counts: jobs for its preset need only wait.
        live = frozenset(worker.preset for worker in workers if worker.reason is None)
        available = frozenset(worker.preset for worker in workers if worker.ready)
        return cls(
            live=live,
            available=available,
            compiling={
                worker.preset: f"its worker is {worker.condition}"
                for worker in workers
                if worker.state == "compiling" and worker.preset not in available
            },
            reasons={
                worker.preset: worker.reason
                for worker in workers
                if worker.reason is not None and worker.preset not in live
            },
        )

    def reason(self, preset: str) -> str | None:
        """Why no worker takes the preset's jobs now; None where that is not known."""
        return self.reasons.get(preset) or self.compiling.get(preset)

    def check(self, preset: str) -> None:
        """Raises PresetUnavailable when the preset's workers are not ready.

        A preset without any worker passes: its worker may be starting again.
        """
        if (reason := self.reasons.get(preset)) is not None:
            raise PresetUnavailable(
                f"{preset} is not served: {reason}.",
                preset=preset,
                served=[*sorted(self.available)],
            )


log = structlog.stdlib.get_logger(__name__)

# Asked more often, the last answer is repeated: the route needs no key, and each try is a write.
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
                try:
                    self._store.try_out()
                    self._works = True
                except StoreUnavailable as error:
                    log.warning("the image store does not work", detail=error.detail)
                    self._works = False
                self._until = time.monotonic() + REMEMBER_S
            return self._works
