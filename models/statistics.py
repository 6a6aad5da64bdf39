"""Mean and variance of whole feature maps, pooled from their strips.

Group normalisation looks at a whole map. Each strip gives count, mean and sum of squared
deviations (M2) of every channel over its own rows, halos not counted; these are merged exactly
(Chan, Golub, LeVeque 1983, eq. 2.1) and pooled to groups at the end. Channels, not groups, are
what is kept, so that two maps' statistics can be joined as their channels are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

# Elements that are widened to float32 at once: few enough for a processor's cache, and on a GPU
# enough that kernels are worth their launch.
CHUNK, GPU_CHUNK = 2**20, 2**23


@dataclass(frozen=True)
class Statistics:
    """Of each channel of a map, or of some of its rows."""

    count: int
    """Pixels."""
    mean: Tensor
    """(channels,) float64"""
    m2: Tensor
    """Sum of squared deviations from the mean, (channels,) float64"""

    @classmethod
    def of(cls, rows: Tensor) -> Statistics:
        """Of rows (1, channels, n, width). Sums run in float32 over deviations from each chunk's
        mean, never over squares of the values, so an offset far above the spread costs no digits.
        """
        pixels = rows[0].permute(1, 2, 0).flatten(0, 1)
        elements = CHUNK if rows.device.type == "cpu" else GPU_CHUNK
        chunks = torch.split(pixels, max(1, elements // rows.shape[1]))
        return reduce(cls.merge, map(cls._of_chunk, chunks))

    @classmethod
    def _of_chunk(cls, pixels: Tensor) -> Statistics:
        """Of (count, channels)."""
        dtype = torch.promote_types(pixels.dtype, torch.float32)
        values = pixels.to(dtype)
        mean = values.mean(0)
        # In place only in a copy.
        values = values - mean if pixels.dtype == dtype else values.sub_(mean)
        # What rounding left of the mean; it matters where the offset is large.
        rest = values.mean(0).double()
        m2 = values.square_().sum(0).double() - len(pixels) * rest.square()
        return cls(len(pixels), mean.double() + rest, m2)

    def merge(self, other: Statistics) -> Statistics:
        """Of both parts together, which must be disjoint."""
        count = self.count + other.count
        difference = other.mean - self.mean
        mean = self.mean + difference * (other.count / count)
        m2 = self.m2 + other.m2 + difference.square() * (self.count * other.count / count)
        return Statistics(count, mean, m2)

    def pool(self, groups: int) -> tuple[Tensor, Tensor]:
        """Mean and (biased) variance of each channel's group, both (channels,) float64."""
        means, m2s = self.mean.view(groups, -1), self.m2.view(groups, -1)
        mean = means.mean(1, keepdim=True)
        # All channels count the same pixels, so the merge is a plain average.
        variance = m2s.mean(1, keepdim=True) / self.count
        variance = variance + (means - mean).square().mean(1, keepdim=True)
        return mean.expand_as(means).flatten(), variance.expand_as(means).flatten()
