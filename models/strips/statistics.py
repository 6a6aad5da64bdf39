"""Mean and variance of whole feature maps, pooled from their strips.

Group normalisation looks at a whole map. Each strip gives count, mean and sum of squared
deviations (M2) of every channel over its own rows, halos not counted; these are merged exactly
(Chan, Golub, LeVeque 1983, eq. 2.1) and pooled to groups at the end. Channels, not groups, are
what is kept, so that two maps' statistics can be joined as their channels are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CHUNK", "GPU_CHUNK", "Normalization", "Statistics"]

# Elements that are widened to float32 at once: few enough for a processor's cache, and on a GPU
# enough that kernels are worth their launch.
CHUNK, GPU_CHUNK = 2**20, 2**23


@dataclass(frozen=True)
class Statistics:
    """Of each channel of a map, or of some of its rows."""

    count: int
    """Cells seen."""
    mean: Tensor
    """(channels,) float64"""
    m2: Tensor
    """Sum of squared deviations from the mean, (channels,) float64"""

    @classmethod
    def of(cls, rows: Tensor) -> Statistics:
        """Of rows (1, channels, n, width).

        Sums run in float32 over deviations from each chunk's mean, never over squares of the
        values themselves, so that an offset far above the spread costs no digits.
        """
        cells = rows[0].permute(1, 2, 0).flatten(0, 1)
        elements = CHUNK if rows.device.type == "cpu" else GPU_CHUNK
        chunks = torch.split(cells, max(1, elements // rows.shape[1]))
        return reduce(cls.merged, map(cls._of_chunk, chunks))

    @classmethod
    def _of_chunk(cls, cells: Tensor) -> Statistics:
        """Of (count, channels)."""
        wide = torch.promote_types(cells.dtype, torch.float32)
        values = cells.to(wide)
        mean = values.mean(0)
        # In place only in a copy.
        values = values - mean if cells.dtype == wide else values.sub_(mean)
        # What rounding left of the mean; it matters where the offset is large.
        rest = values.mean(0).double()
        m2 = values.square_().sum(0).double() - len(cells) * rest.square()
        return cls(len(cells), mean.double() + rest, m2)

    @classmethod
    def unknown(cls, count: int, channels: int) -> Statistics:
        """Stands for statistics where nothing is computed."""
        return cls(count, *torch.empty((2, channels), device="meta", dtype=torch.float64))

    def merged(self, other: Statistics) -> Statistics:
        """Of both parts together, which must be disjoint."""
        count = self.count + other.count
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        m2 = self.m2 + other.m2 + apart.square() * (self.count * other.count / count)
        return Statistics(count, mean, m2)

    def grouped(self, groups: int) -> tuple[Tensor, Tensor]:
        """Mean and (biased) variance of each channel's group, both (channels,) float64."""
        means, m2s = self.mean.view(groups, -1), self.m2.view(groups, -1)
        mean = means.mean(1, keepdim=True)
        # All channels count the same cells, so the merge is a plain average.
        variance = m2s.mean(1, keepdim=True) / self.count
        variance = variance + (means - mean).square().mean(1, keepdim=True)
        return mean.expand_as(means).flatten(), variance.expand_as(means).flatten()


class Normalization:
    """A group norm with the whole map's statistics, followed by SiLU where asked."""

    def __init__(self, norm: nn.GroupNorm, statistics: Sequence[Statistics]) -> None:
        """`statistics`: of the maps whose channels, one after the other, are normalized."""
        joined = Statistics(
            statistics[0].count,
            torch.cat([s.mean for s in statistics]),
            torch.cat([s.m2 for s in statistics]),
        )
        # As in a group norm, parameters and statistics are at least float32.
        dtype = torch.promote_types(norm.weight.dtype, torch.float32)
        mean, variance = joined.grouped(norm.num_groups)
        self._mean, self._variance = mean.to(dtype), variance.to(dtype)
        self._weight, self._bias = norm.weight.to(dtype), norm.bias.to(dtype)
        self._eps = norm.eps

    def __call__(self, rows: Tensor) -> Tensor:
        """(1, channels, n, width) -> the same, a tensor of its own."""
        # With statistics given, a batch norm is the same arithmetic, rounded once.
        return F.batch_norm(
            rows, self._mean, self._variance, self._weight, self._bias, False, 0.0, self._eps
        )

    def activated(self, rows: Tensor) -> Tensor:
        """SiLU of the normalized rows."""
        return F.silu(self(rows), inplace=True)
