"""The signs of life of a worker process, from a thread that does nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import structlog
from redis.exceptions import RedisError

from jobs.errors import JobsError

__all__ = ["Repeating"]

log = structlog.get_logger(__name__)


class Repeating:
    """Calls every one of `actions` about every `interval_s`, on one thread, until stopped.

    An action that Redis or the store does not let finish is left for the next time; the others
    are done all the same.
    """

    def __init__(
        self, name: str, interval_s: float, actions: Callable[[], Sequence[Callable[[], object]]]
    ) -> None:
        self._interval_s = interval_s
        self._actions = actions
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._name = name

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Begin no further round, and wait a moment for the one that is under way."""
        self._stopped.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        while not self._stopped.is_set():
            began = time.monotonic()
            for action in self._actions():
                self._attempt(action)
            self._stopped.wait(max(0.0, self._interval_s - (time.monotonic() - began)))

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except (RedisError, JobsError) as error:
            log.warning("left for the next time", thread=self._name, reason=str(error))
        # Without this thread the process would look dead while it works: nothing may end it.
        except Exception:
            log.exception("unexpected error", thread=self._name)
