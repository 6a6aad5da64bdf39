"""Runs passes: one after the other, each over strips from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from models.memory import half, until_it_fits
from models.pieces.settings import Callbacks
from models.pieces.store import FeatureMap, MapStore
from models.pieces.strips import Span, Strip

__all__ = [
    "Executor",
    "Pass",
    "Read",
    "Result",
    "Source",
    "TensorSource",
    "Write",
]


class Source(Protocol):
    """What a pass can read: a feature map, or an image that is a tensor already."""

    channels: int
    height: int
    width: int

    def read(self, top: int, bottom: int) -> Tensor:
        """Rows (1, channels, n, width) on the network's device, in its dtype."""

    def release(self, before: int) -> None:
        """Rows above `before` are not read again."""


class TensorSource:
    """A tensor (1, channels, height, width), anywhere and of any dtype; it is never freed."""

    def __init__(self, tensor: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        self._tensor, self._device, self._dtype = tensor, device, dtype
        self.channels, self.height, self.width = tensor.shape[1:]

    def read(self, top: int, bottom: int) -> Tensor:
        rows = self._tensor[:, :, top:bottom].to(self._device, self._dtype)
        return rows.contiguous(memory_format=torch.channels_last)

    def release(self, before: int) -> None:
        pass


@dataclass(frozen=True)
class Read:
    """Rows of a source that a strip of the result needs."""

    source: Source
    halo: int = 0
    """Rows more on either side, of the source."""
    stride: Fraction = Fraction(1)
    """Rows of the source for one of the result."""
    last: bool = True
    """Nobody reads the source after this pass: it is freed as the pass goes."""

    def strip(self, span: Span) -> Strip:
        """What the rows `span` of the result need; less where the map ends."""
        height = self.source.height
        top = max(span.top * self.stride // 1 - self.halo, 0)
        bottom = min(-(-span.bottom * self.stride // 1) + self.halo, height)
        return Strip(self.source.read(top, bottom), top, height)

    def release(self, done: int) -> None:
        """Frees what no row of the result from `done` on needs."""
        if self.last:
            finished = done * self.stride // 1 - self.halo
            self.source.release(finished)


@dataclass(frozen=True)
class Result:
    """A map that a pass makes."""

    channels: int
    normalized: bool = True
    """Whether a group norm reads it."""


@dataclass(frozen=True)
class Pass:
    """Everything between two points where the whole map must be known."""

    results: Sequence[Result]
    height: int
    width: int
    """Of the results."""
    reads: Sequence[Read]
    compute: Callable[[Span, Sequence[Strip]], Sequence[Strip]]
    """The span's rows of each result, at least, from the strips of `reads`; it must not change
    those, and gives tensors of its own."""
    flops: int
    """Of the whole pass."""
    temporaries: int
    """Channels of the results' size that `compute` holds at most, its results counted and what
    it reads not."""
    halo: int = 0
    """Rows of the results' size that `temporaries` have beyond a strip, on either side."""
    resident: int = 0
    """Bytes on the device that are there during the whole pass, beside maps and strips."""

    @property
    def coarsest(self) -> int:
        """Rows of a source for one of the result, at most."""
        return max(1, *(-(-read.stride // 1) for read in self.reads))


Write = Callable[[int, Tensor], None]
"""Takes a result's first row and rows (1, channels, n, width), strip after strip; a strip that
failed comes again."""


class Executor:
    """Runs passes with strips that shrink when memory runs out.

    Args:
        store: where results are kept.
        rows: of a strip, at first.
        flops: of all passes, for the progress.
        callbacks: told and asked between strips.
    """

    def __init__(self, store: MapStore, rows: int, flops: int, callbacks: Callbacks) -> None:
        self.store, self.rows = store, rows
        self._flops, self._done = flops, 0.0
        self._callbacks = callbacks

    def map(self, step: Pass) -> FeatureMap:
        """Runs a pass of one result, which is kept as a map."""
        (made,) = self.maps(step)
        return made

    def maps(self, step: Pass) -> list[FeatureMap]:
        """Runs a pass whose results are kept as maps."""
        made = [
            self.store.new(r.channels, step.height, step.width, normalized=r.normalized)
            for r in step.results
        ]

        def take(top: int, results: Sequence[Tensor]) -> None:
            for x, rows in zip(made, results, strict=True):
                x.write(top, rows)
            # A strip that fails before this is made again: written over, but counted once.
            counted = [x.counted(rows) for x, rows in zip(made, results, strict=True)]
            for x, statistics in zip(made, counted, strict=True):
                x.count(statistics)

        self._run(step, take)
        return made

    def emit(self, step: Pass, write: Write) -> None:
        """Runs a pass of one result, which is handed out strip by strip."""
        self._run(step, lambda top, results: write(top, *results))

    def _run(self, step: Pass, take: Callable[[int, Sequence[Tensor]], None]) -> None:
        top = 0
        while top < step.height:
            bottom, self.rows = until_it_fits(
                partial(self._strip, step, take, top),
                self.rows,
                half,
                self._callbacks.on_shrink,
            )
            for read in step.reads:
                read.release(bottom)
            self._done += step.flops * (bottom - top) / step.height
            self._callbacks.progress(min(self._done / self._flops, 1.0))
            top = bottom
        for read in step.reads:
            if read.last:
                read.source.release(read.source.height)

    def _strip(
        self, step: Pass, take: Callable[[int, Sequence[Tensor]], None], top: int, rows: int
    ) -> int:
        """From `top` on so many rows of the larger map; returns the row after the last."""
        self._callbacks.check()
        span = Span(top, min(top + max(1, rows // step.coarsest), step.height))
        strips = [read.strip(span) for read in step.reads]
        results = step.compute(span, strips)
        take(span.top, [result.crop(span).rows for result in results])
        return span.bottom
