"""Continuous batching: the network calls of all running jobs, made by one thread.

Each job's sampler is a generator that yields the tiles of one step and is sent the predictions.
The generator runs on its own job's thread: aggregating tiles and making the scheduler's step for
one job then overlaps with the network call of the others, an error in it belongs to its job alone,
and no generator is ever touched by two threads. Only the tiles cross over to the engine's thread,
which fills every call with tiles of whatever jobs wait, each tile with its own timestep.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import structlog
import torch
from torch import Tensor

from models.sampling import Sampler, Step, StepRequest
from worker.device_lock import DeviceLock
from worker.errors import EngineBroken
from worker.metrics import WorkerMetrics
from worker.model import Upscaler

__all__ = ["MAX_TILES", "Engine", "shares"]

MAX_TILES = 8
"""Tiles in one network call."""

# How long a call may wait for the tiles of jobs that are between two steps: at most this, and
# never more than half of what the last call took.
LINGER_S = 0.05
# How often a job that waits for its predictions looks whether it should still wait.
POLL_S = 0.1

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class _Pending:
    """One step of one job: its tiles, and the predictions on their way back, in order."""

    step: Step
    served: int = 0
    answers: SimpleQueue[Tensor | Exception] = field(default_factory=SimpleQueue)

    @property
    def tiles(self) -> int:
        return len(self.step)

    @property
    def left(self) -> int:
        return self.tiles - self.served


@dataclass(frozen=True, eq=False)
class _Slice:
    """Tiles `start` to `stop` of a pending step, in one network call."""

    pending: _Pending
    start: int
    stop: int

    @property
    def tiles(self) -> int:
        return self.stop - self.start

    @property
    def request(self) -> StepRequest:
        return self.pending.step.part(self.start, self.stop)


def _no_news() -> None:
    pass


def _unwatched(what: str) -> AbstractContextManager[Callable[[], None]]:
    return nullcontext(_no_news)


class Engine:
    """Owns the model's network calls.

    `max_tiles` bounds a call. `watch` is entered around every call (and every step of a sampler)
    with a name for it; what it yields is called while a step awaits its predictions, since the
    calls are watched themselves. `device` is held while a call is made. `metrics` has how long
    steps and calls take and how full the calls are.
    """

    def __init__(
        self,
        model: Upscaler,
        *,
        max_tiles: int = MAX_TILES,
        watch: Callable[[str], AbstractContextManager[Callable[[], None]]] = _unwatched,
        device: DeviceLock | None = None,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        if max_tiles < 1:
            raise ValueError(f"max_tiles is {max_tiles}; a network call takes at least one tile")
        self._model = model
        self._watch = watch
        self._device = device or DeviceLock()
        self._metrics = metrics or WorkerMetrics()
        self._ready = threading.Condition()
        self._waiting: deque[_Pending] = deque()
        self._running = 0
        self._stopping = False
        self._broken: BaseException | None = None
        self._last_call_s = 0.0
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self.max_tiles = max_tiles
        self.calls = 0
        """Network calls made."""
        self.tiles = 0
        """Tiles predicted."""
        self.failed_batches = 0
        """Calls for several jobs that failed and were repeated job by job."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the call that is being made; whoever waits gets EngineBroken."""
        with self._ready:
            self._stopping = True
            self._ready.notify_all()

    def ended(self, *, timeout_s: float) -> bool:
        """Whether the thread has ended, after waiting so long for it at most."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def run(
        self,
        sampler: Sampler,
        *,
        on_step: Callable[[Step], None] = lambda step: None,
        poll: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Drive `sampler` to its end and return its latent. Called on the job's thread.

        `on_step` is called before every step and `poll` every now and then while predictions are
        awaited; what either raises closes the sampler and is raised here. So is what the network
        raised for this job's tiles.

        Raises:
            EngineBroken: the engine has ended.
        """
        with self._joined():
            try:
                with self._watch("sample"):
                    step = next(sampler)
                while True:
                    on_step(step)
                    with (
                        self._metrics.step_seconds.time(),
                        self._watch("sample") as renew,
                        closing(self._predictions(step, poll, renew)) as predictions,
                    ):
                        step = sampler.send(predictions)
            except StopIteration as end:
                latent: Tensor = end.value
                return latent
            finally:
                sampler.close()

    @contextmanager
    def _joined(self) -> Iterator[None]:
        with self._ready:
            self._running += 1
        try:
            yield
        finally:
            with self._ready:
                self._running -= 1
                self._ready.notify_all()

    def _predictions(
        self, step: Step, poll: Callable[[], None], renew: Callable[[], None]
    ) -> Generator[Tensor, None, None]:
        """The prediction of each tile, as the calls that hold its tiles come back."""
        pending = _Pending(step)
        with self._ready:
            if self._stopping or self._broken is not None:
                raise EngineBroken("The engine has ended.") from self._broken
            self._waiting.append(pending)
            self._ready.notify_all()
        try:
            taken = 0
            while taken < pending.tiles:
                answer: Tensor | Exception | None = None
                with suppress(Empty):
                    answer = pending.answers.get(timeout=POLL_S)
                if isinstance(answer, Exception):
                    raise answer
                renew()
                poll()
                if answer is not None:
                    taken += len(answer)
                    yield from answer
        finally:
            self._withdraw(pending)

    def _withdraw(self, pending: _Pending) -> None:
        with self._ready:
            if pending in self._waiting:
                self._waiting.remove(pending)

    def _serve(self) -> None:
        try:
            with torch.inference_mode():
                while (batch := self._next_batch()) is not None:
                    self._call(batch)
            self._end(EngineBroken("The engine was stopped."))
        # Not a failed network call (those are caught one by one) but a fault of this class: the
        # jobs that wait must hear of it, or they would wait for ever.
        except BaseException as error:
            log.critical("engine ended", exc_info=True)
            self._broken = error
            self._end(EngineBroken(f"The engine has ended: {error!r}."))

    def _end(self, error: EngineBroken) -> None:
        with self._ready:
            self._stopping = True
            for pending in self._waiting:
                pending.answers.put(error)
            self._waiting.clear()

    def _next_batch(self) -> list[_Slice] | None:
        """The tiles of the next call: of every step that waits as many, as far as there is room.

        Those of a small picture are in the next call, however many a large one has waiting. What
        they leave goes to the step that waited longest; who is cut goes to the back of the line.
        """
        with self._ready:
            while not self._waiting and not self._stopping:
                self._ready.wait()
            self._linger()
            if self._stopping:
                return None
            batch: list[_Slice] = []
            cut: list[_Pending] = []
            for tiles in shares([p.left for p in self._waiting], self.max_tiles):
                pending = self._waiting.popleft()
                stop = pending.served + tiles
                batch.append(_Slice(pending, pending.served, stop))
                pending.served = stop
                if pending.left:
                    cut.append(pending)
            self._waiting.extend(cut)
            return batch

    def _linger(self) -> None:
        """Wait a moment for jobs that are between two steps.

        Without this two jobs would take turns for ever, each asking while the other's call is
        being made, and no call would hold tiles of both.
        """
        deadline = time.monotonic() + min(LINGER_S, self._last_call_s / 2)
        while not self._stopping and len(self._waiting) < self._running:
            left = deadline - time.monotonic()
            enough = sum(p.left for p in self._waiting) >= self.max_tiles
            if left <= 0 or enough:
                return
            self._ready.wait(left)

    def _call(self, batch: list[_Slice]) -> None:
        tiles = sum(part.tiles for part in batch)
        started = time.monotonic()
        failure: Exception | None = None
        try:
            with self._device.denoiser(_no_news), self._watch("predict"):
                predictions = self._model.predict([part.request for part in batch])
            if len(predictions) != len(batch):
                raise RuntimeError(f"{len(predictions)} predictions for {len(batch)} requests")
        # Whatever the network raises belongs to the jobs of this call, not to the engine.
        except Exception as error:
            log.warning("a network call failed", jobs=len(batch), tiles=tiles, exc_info=True)
            failure = _without_frames(error)
        # Only here: the error held what was computed so far.
        if failure is not None:
            self._recover(batch, failure)
            return
        self._last_call_s = time.monotonic() - started
        self.calls += 1
        self.tiles += tiles
        self._metrics.tiles.inc(tiles)
        self._metrics.network_call_seconds.observe(self._last_call_s)
        self._metrics.batch_fill.observe(tiles / self.max_tiles)
        for part, prediction in zip(batch, predictions, strict=True):
            part.pending.answers.put(prediction)

    def _recover(self, batch: list[_Slice], error: Exception) -> None:
        """Find out whose fault a failed call was: only the guilty job fails."""
        if len(batch) > 1:
            self.failed_batches += 1
            log.warning("repeating the call job by job", jobs=len(batch))
            for part in batch:
                self._call([part])
            return
        [part] = batch
        self._withdraw(part.pending)
        part.pending.answers.put(error)


def shares(wanted: Sequence[int], room: int) -> list[int]:
    """How much of the room each gets: all alike as far as they want it, then the first ones the
    rest. Shorter than `wanted` where there is not one for each; nobody gets none."""
    given = [0] * min(len(wanted), room)
    each = room // max(1, len(given))
    for number, most in enumerate(wanted[: len(given)]):
        given[number] = min(most, each)
    room -= sum(given)
    for number, most in enumerate(wanted[: len(given)]):
        more = min(most - given[number], room)
        given[number], room = given[number] + more, room - more
    return given


def _without_frames(error: Exception) -> Exception:
    """The error alone: a traceback keeps every activation of the call that failed alive, on the
    device that has no memory left for the next one."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
