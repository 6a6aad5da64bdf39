"""What passes take: arithmetic and memory, without running them.

The same passes are gone through on networks without weights ("meta" tensors) by an executor that
counts instead of computing, so a number cannot drift from what is run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from models.strips.executor import Executor, Pass, TensorSource, Write
from models.strips.settings import Callbacks, StripConfig
from models.strips.statistics import GPU_CHUNK
from models.strips.store import FeatureMap, MapStore

__all__ = ["META", "Cost", "Counter"]

META = torch.device("meta")


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

    def __init__(self, strips: StripConfig, dtype: torch.dtype) -> None:
        store = MapStore("device", META, dtype, strips.rows, None)
        super().__init__(store, strips.rows, 0, Callbacks())
        self.flops = self.held = self.strips = 0
        self._live: list[FeatureMap] = []

    @property
    def cost(self) -> Cost:
        """Of all passes so far."""
        return Cost(self.flops, self.held, self.strips)

    def source(self, *shape: int) -> TensorSource:
        """Stands for a tensor (1, channels, height, width)."""
        return TensorSource(torch.empty((1, *shape), device=META), META, self.store.dtype)

    def hold(self, channels: int, height: int, width: int) -> FeatureMap:
        """A map that stays until a pass reads it for the last time."""
        feature_map = self.store.new(channels, height, width, normalized=True)
        feature_map.rehearse()
        self._live.append(feature_map)
        return feature_map

    def maps(self, step: Pass) -> list[FeatureMap]:
        before = sum(x.nbytes for x in self._live)
        results = [self.hold(r.channels, step.height, step.width) for r in step.results]
        freed = [r.source for r in step.reads if r.last and isinstance(r.source, FeatureMap)]
        for x in freed:
            self._live.remove(x)
        # The results take the place of what is freed, by and by and a block at a time.
        after = sum(x.nbytes for x in self._live)
        exchanging = max(before, after) + sum(x.block_bytes for x in (*results, *freed))
        both = before + sum(x.nbytes for x in results)
        self.held = max(self.held, min(exchanging, both))
        self._count(step)
        return results

    def emit(self, step: Pass, write: Write) -> None:
        self._count(step)

    def _count(self, step: Pass) -> None:
        self.flops += step.flops
        rows = min(max(1, self.rows // step.coarsest), step.height)
        elements = min(rows + 2 * step.halo, step.height) * step.width * step.temporaries
        for read in step.reads:
            source = read.source
            strip = min(-(-rows * read.stride // 1) + 2 * read.halo, source.height)
            elements += strip * source.width * source.channels
        # Statistics are taken in float32, of no more than a chunk at once.
        widest = rows * step.width * max(result.channels for result in step.results)
        statistics = min(widest, GPU_CHUNK) * torch.float32.itemsize
        self.strips = max(self.strips, elements * self.store.itemsize + statistics + step.resident)
