"""Sizes of an image on its way, and how its canvas is cut into tiles. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from models.errors import InvalidOption

# 11585 x 11585: keeps a strip of one pixel's width from asking for terabytes.
MAX_CANVAS = 2**27
"""Pixels."""


def output_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Sides of the result: `round(scale * side)`, at least 1 since scale is."""
    return round(scale * height), round(scale * width)


@dataclass(frozen=True)
class Grid:
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
        return [(y, x) for y in self._starts(self.height) for x in self._starts(self.width)]

    def _starts(self, side: int) -> list[int]:
        """Where tiles begin along one side; the last one is moved back to end at the border."""
        if side <= self.tile:
            return [0]
        return [*range(0, side - self.tile, self.tile - self.overlap), side - self.tile]

    def __len__(self) -> int:
        return len(self._starts(self.height)) * len(self._starts(self.width))
