"""Aggregation sampling: overlapping tiles of one canvas, averaged with Gaussian weights.

Paper, section 3.4. The canvas is one diffusion; only the network's view is cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.geometry import Grid

_VARIANCE = 0.01


def _profile(side: int, middle: float) -> npt.NDArray[np.float64]:
    i = np.arange(side, dtype=np.float64)
    spread = 2 * _VARIANCE * side**2
    weights: npt.NDArray[np.float64] = np.exp(-((i - middle) ** 2) / spread)
    weights /= math.sqrt(2 * math.pi * _VARIANCE)
    return weights


@lru_cache(maxsize=32)
def gaussian_weights(height: int, width: int) -> npt.NDArray[np.float64]:
    """Weight of each latent pixel of a tile, (height, width), float64.

    The middle lies half a pixel further down than across: the released networks were run so,
    and their golden figures hold it.
    """
    return np.outer(_profile(height, height / 2), _profile(width, (width - 1) / 2))


class TileGrid(Grid):
    """Cuts a canvas, and joins its tiles."""

    @cached_property
    def _total_weight(self) -> npt.NDArray[np.float64]:
        """Sum of the weights of all tiles at each latent pixel, (height, width)."""
        h, w = self.tile_height, self.tile_width
        weights, total = gaussian_weights(h, w), np.zeros((self.height, self.width))
        for y, x in self.origins:
            total[y : y + h, x : x + w] += weights
        return total

    def cut(self, canvas: Tensor, origins: Sequence[tuple[int, int]]) -> Tensor:
        """(1, c, height, width) -> (tiles, c, tile_height, tile_width), of some origins: tiles
        overlap, so all of them hold several times what the canvas does."""
        h, w = self.tile_height, self.tile_width
        return torch.cat([canvas[:, :, y : y + h, x : x + w] for y, x in origins])

    def join(self, tiles: Iterable[Tensor]) -> Tensor:
        """One (c, tile_height, tile_width) a tile, in order -> (1, c, height, width), their dtype:
        sum of weight * tile over sum of weights. Each tile is added as it comes and not kept; of an
        iterator no more than this canvas' tiles are taken.

        Raises:
            ValueError: there are fewer tiles than places for them.
        """
        origins, h, w = self.origins, self.tile_height, self.tile_width
        total = weights = None
        for (y, x), tile in zip(origins, islice(tiles, len(origins)), strict=True):
            if len(origins) == 1:
                return tile[None]
            if total is None or weights is None:
                weights = torch.from_numpy(gaussian_weights(h, w)).to(tile)
                total = tile.new_zeros(1, tile.shape[0], self.height, self.width)
            total[:, :, y : y + h, x : x + w] += weights * tile
        assert total is not None  # there is always a tile
        return total / torch.from_numpy(self._total_weight).to(total)
