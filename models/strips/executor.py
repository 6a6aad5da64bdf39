"""Runs passes, one after the other, each over strips from top to bottom; or counts what they take.

To count, the same passes are gone through on networks without weights ("meta" tensors) by an
executor that computes nothing, so a number cannot drift from what is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from models.memory import half, until_it_fits
from models.statistics import GPU_CHUNK
from models.strips.layers import Span, Strip
from models.strips.maps import FeatureMap, MapStore, StripConfig

META = torch.device("meta")


@dataclass(frozen=True)
class Callbacks:
    """What is called between two strips."""

    progress: Callable[[float], None] = lambda fraction: None
    """Fraction of the arithmetic that is done, rising to 1."""
    check: Callable[[], None] = lambda: None
    """May raise to cancel: all that is held is freed and the error passed on."""
    on_shrink: Callable[[int, int], None] = lambda before, after: None
    """Memory ran out: strips had so many rows and have so many from now on."""


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


Source = FeatureMap | TensorSource
"""What a pass can read."""


@dataclass(frozen=True)
class Read:
    """Rows of a source that a strip of the result needs."""

    source: Source
    halo: int = 0
    """Rows more on either side, of the source."""
    stride: Fraction = Fraction(1)
    """Rows of the source for one of the result."""
    last: bool = True
    """No later pass reads the source: it is freed as the pass goes."""

    def strip(self, span: Span) -> Strip:
        """What the rows `span` of the result need; less where the map ends."""
        height = self.source.height
        top = max(span.top * self.stride // 1 - self.halo, 0)
        bottom = min(-(-span.bottom * self.stride // 1) + self.halo, height)
        return Strip(self.source.read(top, bottom), top, height)

    def release(self, row: int) -> None:
        """Frees what no row of the result from `row` on needs."""
        if self.last:
            self.source.release(row * self.stride // 1 - self.halo)


@dataclass(frozen=True)
class Pass:
    """Everything between two points where the whole map must be known. Its results have the size
    of the first source, divided by the stride."""

    reads: Sequence[Read]
    channels: Sequence[int]
    """Of each result"""
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
    with_statistics: bool = True
    """Whether a group norm reads the first result."""

    @property
    def height(self) -> int:
        return -(-self.reads[0].source.height // self.reads[0].stride)

    @property
    def width(self) -> int:
        return -(-self.reads[0].source.width // self.reads[0].stride)

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
        store: where results are kept, and how high strips are at first.
        flops: of all passes, for the progress.
        callbacks: called between strips.
    """

    def __init__(self, store: MapStore, flops: int, callbacks: Callbacks) -> None:
        self.store, self.height = store, store.config.height
        self._all_flops, self._flops = flops, 0.0
        self._callbacks = callbacks

    def map(self, step: Pass) -> FeatureMap:
        """Runs a pass of one result, which is kept as a map."""
        (feature_map,) = self.maps(step)
        return feature_map

    def maps(self, step: Pass) -> list[FeatureMap]:
        """Runs a pass whose results are kept as maps."""
        maps = self._new_maps(step)

        def write(top: int, results: Sequence[Tensor]) -> None:
            for feature_map, rows in zip(maps, results, strict=True):
                feature_map.write(top, rows)

        self._run(step, write)
        return maps

    def emit(self, step: Pass, write: Write) -> None:
        """Runs a pass of one result, which is handed out strip by strip."""
        self._run(step, lambda top, results: write(top, *results))

    def _new_maps(self, step: Pass) -> list[FeatureMap]:
        return [
            self.store.new(
                channels, step.height, step.width, with_statistics=step.with_statistics and i == 0
            )
            for i, channels in enumerate(step.channels)
        ]

    def _run(self, step: Pass, write: Callable[[int, Sequence[Tensor]], None]) -> None:
        top, height = 0, step.height
        while top < height:
            strip = partial(self._strip, step, write, top)
            bottom, self.height = until_it_fits(strip, self.height, half, self._callbacks.on_shrink)
            for read in step.reads:
                read.release(bottom)
            self._flops += step.flops * (bottom - top) / height
            self._callbacks.progress(min(self._flops / self._all_flops, 1.0))
            top = bottom
        for read in step.reads:
            if read.last:
                read.source.release(read.source.height)

    def _strip(
        self, step: Pass, write: Callable[[int, Sequence[Tensor]], None], top: int, height: int
    ) -> int:
        """From `top` on so many rows of the larger map; returns the row after the last."""
        self._callbacks.check()
        span = Span(top, min(top + max(1, height // step.coarsest), step.height))
        results = step.compute(span, [read.strip(span) for read in step.reads])
        write(span.top, [result.crop(span).rows for result in results])
        return span.bottom


class Cost(NamedTuple):
    """Of one encoding or decoding."""

    flops: int
    """A product and a sum are two. Rows that halos compute twice are not counted."""
    maps: int
    """Bytes of the feature maps that are held at once, at most; the encoder's features, which
    fusion reads, are among them."""
    strips: int
    """Bytes of strips and what layers make of them, at most; on the device."""


class Counter(Executor):
    """Goes through passes and counts what they take."""

    def __init__(self, config: StripConfig, dtype: torch.dtype) -> None:
        super().__init__(MapStore(replace(config, keep="device"), META, dtype), 0, Callbacks())
        self.cost = Cost(0, 0, 0)
        """Of all passes so far."""
        self._live: list[FeatureMap] = []

    def source(self, *shape: int) -> TensorSource:
        """Stands for a tensor (1, channels, height, width)."""
        return TensorSource(torch.empty((1, *shape), device=META), META, self.store.dtype)

    def hold(self, channels: int, height: int, width: int) -> FeatureMap:
        """A map that stays until a pass reads it for the last time."""
        self._live.append(self.store.new(channels, height, width, with_statistics=False))
        return self._live[-1]

    def maps(self, step: Pass) -> list[FeatureMap]:
        before = sum(x.nbytes for x in self._live)
        results = self._new_maps(step)
        sources = [r.source for r in step.reads if r.last and isinstance(r.source, FeatureMap)]
        self._live = [x for x in self._live if x not in sources] + results
        # The results take the place of what is freed, by and by and a block at a time.
        after = sum(x.nbytes for x in self._live)
        one_by_one = max(before, after) + sum(x.block_nbytes for x in (*results, *sources))
        together = before + sum(x.nbytes for x in results)
        self.cost = self.cost._replace(maps=max(self.cost.maps, min(one_by_one, together)))
        self._count(step)
        return results

    def emit(self, step: Pass, write: Write) -> None:
        self._count(step)

    def _count(self, step: Pass) -> None:
        rows = min(max(1, self.height // step.coarsest), step.height)
        elements = min(rows + 2 * step.halo, step.height) * step.width * step.temporaries
        for read in step.reads:
            source = read.source
            strip = min(-(-rows * read.stride // 1) + 2 * read.halo, source.height)
            elements += strip * source.width * source.channels
        # Statistics are taken in float32, of no more than a chunk at once.
        widest = rows * step.width * max(step.channels)
        statistics = min(widest, GPU_CHUNK) * torch.float32.itemsize
        nbytes = elements * self.store.dtype.itemsize + statistics + step.resident
        flops, maps, strips = self.cost
        self.cost = Cost(flops + step.flops, maps, max(strips, nbytes))
