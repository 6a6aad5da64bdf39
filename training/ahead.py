"""Batches made one ahead, while the step before is computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from training.objective import Batch

__all__ = ["Ahead"]


class Ahead:
    """Draws batches in their order; on a GPU each on a thread of its own, one before it is asked.

    A batch follows from its number alone, so nothing depends on when it was made. On a CPU the
    thread would take from the step what it gives to the batch, and none is used.

    Args:
        draw: number -> batch; never called by two threads at once.
        device: of the batches.
    """

    def __init__(self, draw: Callable[[int], Batch], device: torch.device) -> None:
        self._draw = draw
        # The current device is each thread's own, and `device` may leave its number open.
        self._current = torch.cuda.current_device() if device.type == "cuda" else None
        self._pool = ThreadPoolExecutor(1, "batches") if device.type == "cuda" else None
        self._next: tuple[int, Future[Batch]] | None = None

    def __call__(self, number: int) -> Batch:
        """The batch of that number; raises what `draw` raises."""
        if self._pool is None:
            return self._draw(number)
        if self._next is not None and self._next[0] == number:
            made = self._next[1]
        else:
            made = self._pool.submit(self._drawn, number)
        batch = made.result()
        self._next = (number + 1, self._pool.submit(self._drawn, number + 1))
        return batch

    def _drawn(self, number: int) -> Batch:
        torch.cuda.set_device(self._current)
        return self._draw(number)

    def close(self) -> None:
        """Ends the thread; what it made in vain is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
