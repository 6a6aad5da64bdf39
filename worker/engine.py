"""Continuous batching: the network calls of all running jobs, made by one thread.

Each job's sampler is a generator that yields the tiles of one step and is sent the predictions. It
runs on its own job's thread: the scheduler's step of one job overlaps with the network call of
others, and an error in it belongs to its job alone. Only the tiles cross over to the engine's
thread, which fills every call with tiles of all jobs that wait, each with its own timestep.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import NamedTuple

import structlog
import torch
from torch import Tensor

from models.sampling import Sampler, Step, StepRequest
from worker.device_lock import DeviceLock
from worker.metrics import WorkerMetrics

# How long a call may wait for jobs that are between two steps; never more than half of a call.
MAX_QUEUE_DELAY_S = 0.05
# How often a job that waits for its predictions looks whether it should still wait.
POLL_S = 0.1

log = structlog.get_logger(__name__)


class EngineBroken(Exception):
    """The engine's thread has ended; only a new process can go on."""


@dataclass(eq=False)
class _Pending:
    """One step of one job: its tiles, and the predictions on their way back, in order."""

    step: Step
    position: int = 0
    """Tiles that are in a call by now"""
    answers: SimpleQueue[Tensor | Exception] = field(default_factory=SimpleQueue)

    @property
    def remainder(self) -> int:
        return len(self.step) - self.position


class _Slice(NamedTuple):
    """Tiles `start` to `stop` of a pending step, in one network call."""

    pending: _Pending
    start: int
    stop: int


class Engine:
    """Owns the model's network calls.

    Args:
        predict: one network call; a (n, C, h, w) for each request.
        max_tiles: bounds a call.
        watch: entered around every call, with a name for it.
        device: held while a call is made.
        metrics: how long steps and calls take, and how full the calls are.
    """

    def __init__(
        self,
        predict: Callable[[Sequence[StepRequest]], list[Tensor]],
        *,
        max_tiles: int = 8,
        watch: Callable[[str], AbstractContextManager[object]] = nullcontext,
        device: DeviceLock | None = None,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        if max_tiles < 1:
            raise ValueError(f"max_tiles is {max_tiles}; a network call takes at least one tile")
        self._predict = predict
        self._max_tiles = max_tiles
        self._watch = watch
        self._device = device or DeviceLock()
        self._metrics = metrics or WorkerMetrics()
        self._ready = threading.Condition()
        self._waiting: deque[_Pending] = deque()
        self._running = 0
        self._stopping = False
        self._last_call_s = 0.0
        self.thread = threading.Thread(target=self._serve, name="engine", daemon=True)

    def stop(self) -> None:
        """End after the call that is being made, and wait a moment for it; jobs that wait get
        EngineBroken."""
        with self._ready:
            self._stopping = True
            self._ready.notify_all()
        self.thread.join(1.0)

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
        with self._ready:
            self._running += 1
        try:
            step = next(sampler)
            while True:
                on_step(step)
                with (
                    self._metrics.step_seconds.time(),
                    closing(self._predictions(step, poll)) as predictions,
                ):
                    step = sampler.send(predictions)
        except StopIteration as end:
            latent: Tensor = end.value
            return latent
        finally:
            sampler.close()
            with self._ready:
                self._running -= 1
                self._ready.notify_all()

    def _predictions(self, step: Step, poll: Callable[[], None]) -> Generator[Tensor, None, None]:
        """The prediction of each tile, as the calls that hold its tiles come back."""
        pending = _Pending(step)
        with self._ready:
            if self._stopping:
                raise EngineBroken("The engine has ended.")
            self._waiting.append(pending)
            self._ready.notify_all()
        try:
            tiles = 0
            while tiles < len(step):
                answer: Tensor | Exception | None = None
                with suppress(Empty):
                    answer = pending.answers.get(timeout=POLL_S)
                if isinstance(answer, Exception):
                    raise answer
                poll()
                if answer is not None:
                    tiles += len(answer)
                    yield from answer
        finally:
            self._withdraw(pending)

    def _withdraw(self, pending: _Pending) -> None:
        with self._ready, suppress(ValueError):
            self._waiting.remove(pending)

    def _serve(self) -> None:
        error = EngineBroken("The engine was stopped.")
        try:
            with torch.inference_mode():
                while batch := self._next_batch():
                    self._call(batch)
        # Not a failed network call (those are caught one by one) but a fault of this class: the
        # jobs that wait must hear of it, or they would wait for ever.
        except BaseException as fault:
            log.critical("engine ended", exc_info=True)
            error = EngineBroken(f"The engine has ended: {fault!r}.")
        with self._ready:
            self._stopping = True
            while self._waiting:
                self._waiting.popleft().answers.put(error)

    def _next_batch(self) -> list[_Slice]:
        """The tiles of the next call, all of one size; none when the engine stops.

        Every step that waits gets as many, as far as there is room, so a small image never waits
        for a large one. The rest goes to the step that waited longest, and a step that is cut goes
        to the back of the line.
        """
        with self._ready:
            while not self._waiting and not self._stopping:
                self._ready.wait()
            self._await_other_jobs()
            if self._stopping:
                return []
            size = self._waiting[0].step.tile_size
            alike = [pending for pending in self._waiting if pending.step.tile_size == size]
            shares = fair_split([pending.remainder for pending in alike], self._max_tiles)
            batch: list[_Slice] = []
            for pending, tiles in zip(alike, shares, strict=False):
                self._waiting.remove(pending)
                start, pending.position = pending.position, pending.position + tiles
                batch.append(_Slice(pending, start, pending.position))
            self._waiting.extend(part.pending for part in batch if part.pending.remainder)
            return batch

    def _await_other_jobs(self) -> None:
        """Wait a moment for jobs that are between two steps.

        Without this two jobs would take turns for ever, each asking while the other's call is
        being made, and no call would hold tiles of both.
        """
        self._ready.wait_for(
            lambda: (
                self._stopping
                or len(self._waiting) >= self._running
                or sum(p.remainder for p in self._waiting) >= self._max_tiles
            ),
            min(MAX_QUEUE_DELAY_S, self._last_call_s / 2),
        )

    def _call(self, batch: list[_Slice]) -> None:
        tiles = sum(stop - start for _, start, stop in batch)
        before = time.monotonic()
        failure: Exception | None = None
        try:
            with self._device.denoiser(), self._watch("predict"):
                predictions = self._predict([p.step.part(start, stop) for p, start, stop in batch])
        # Errors of the network belong to the jobs of this call, not to the engine.
        except Exception as error:
            log.warning("a network call failed", jobs=len(batch), tiles=tiles, exc_info=True)
            # A traceback and a cause keep every activation of the call that failed alive, on the
            # device that has no memory left for the next one.
            error.__cause__ = error.__context__ = None
            failure = error.with_traceback(None)
        # Only here: the error held what was computed so far.
        if failure is not None:
            self._recover(batch, failure)
            return
        self._last_call_s = time.monotonic() - before
        self._metrics.tiles.inc(tiles)
        self._metrics.network_call_seconds.observe(self._last_call_s)
        self._metrics.batch_fill.observe(tiles / self._max_tiles)
        for part, prediction in zip(batch, predictions, strict=True):
            part.pending.answers.put(prediction)

    def _recover(self, batch: list[_Slice], error: Exception) -> None:
        """Find out whose fault a failed call was: only the guilty job fails."""
        if len(batch) == 1:
            self._withdraw(batch[0].pending)
            batch[0].pending.answers.put(error)
            return
        log.warning("repeating the call job by job", jobs=len(batch))
        for part in batch:
            self._call([part])


def fair_split(demands: Sequence[int], room: int) -> list[int]:
    """How much of the room each demand gets: all alike as far as they go, then the first ones the
    rest. Shorter than `demands` where there is not one for each; no entry is 0."""
    counts = [0] * min(len(demands), room)
    share = room // max(1, len(counts))
    for limit in (share, room):
        for number in range(len(counts)):
            more = min(demands[number] - counts[number], limit, room)
            counts[number], room = counts[number] + more, room - more
    return counts
