"""Aggregation sampling: overlapping tiles of one canvas, averaged with Gaussian weights.

Paper, section 3.4. The canvas is one diffusion; only the network's view is cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.config import ModelConfig
from models.errors import InvalidOption
from models.geometry import bounded_canvas_size, output_size
from models.presets import Preset

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


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along one side; the last one is moved back to end at the border."""
    return [0] if size <= tile else [*range(0, size - tile, tile - overlap), size - tile]


@dataclass(frozen=True)
class TileGrid:
    """How a canvas of (height, width) latent pixels is cut into tiles, row by row.

    A canvas smaller than a tile in one direction has tiles of its own size there.

    Raises:
        InvalidOption: an overlap that is not smaller than the tile.
    """

    height: int
    width: int
    tile: int
    overlap: int

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.tile:
            raise InvalidOption(
                f"tile_overlap is {self.overlap}, but must be at least 0 and smaller than the "
                f"tile of {self.tile} latent cells."
            )

    @property
    def tile_height(self) -> int:
        return min(self.tile, self.height)

    @property
    def tile_width(self) -> int:
        return min(self.tile, self.width)

    @cached_property
    def origins(self) -> list[tuple[int, int]]:
        """Top left latent pixel of each tile."""
        rows = _starts(self.height, self.tile, self.overlap)
        columns = _starts(self.width, self.tile, self.overlap)
        return [(y, x) for y in rows for x in columns]

    def __len__(self) -> int:
        return len(self.origins)

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


@dataclass(frozen=True)
class Layout:
    """All sizes of one image, each (height, width)."""

    source: tuple[int, int]
    """The input, px"""
    size: tuple[int, int]
    """The result, px"""
    canvas: tuple[int, int]
    """The upsampled image, px; larger than the result where the input is small"""
    padded: tuple[int, int]
    """The canvas filled up to whole latent pixels, px"""
    grid: TileGrid
    """How its latent is cut"""

    @classmethod
    def of(
        cls, config: ModelConfig, preset: Preset, sides: tuple[int, int], scale: float, overlap: int
    ) -> Layout:
        """For an image of these sides, and tiles that overlap by so many latent pixels.

        Raises:
            InvalidOption: the canvas would be too large, or the overlap is none.
        """
        downscale = config.autoencoder.downscale
        canvas = bounded_canvas_size(*sides, scale, preset.shortest)
        # A canvas smaller than a tile is filled up to what the UNet can halve and double again.
        unit = 2 ** (len(config.unet.widths) - 1)
        cells = (-(-side // downscale) for side in canvas)
        rows, columns = (n if n >= preset.tile else -(-n // unit) * unit for n in cells)
        return cls(
            sides,
            output_size(*sides, scale),
            canvas,
            (downscale * rows, downscale * columns),
            TileGrid(rows, columns, preset.tile, overlap),
        )
