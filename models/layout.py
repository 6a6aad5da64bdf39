"""What an image costs: its sizes on its way, known before anything is computed. Free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.config import ModelConfig
from models.errors import InvalidOption
from models.geometry import MAX_CANVAS, Grid, output_size
from models.parameters import UpscaleParameters
from models.presets import PRESETS, Preset

# Times the result's pixels: a canvas of more is told to who asked for it.
_NOTABLE = 4


@dataclass(frozen=True)
class Layout:
    """All sizes of one image, each (height, width): what it costs. Service, worker, pipeline and
    `stablesr plan` have them from here."""

    source: tuple[int, int]
    """The input, px"""
    size: tuple[int, int]
    """The result, px"""
    canvas: tuple[int, int]
    """The upsampled image, px: its shorter side has `min_canvas_side` at least"""
    padded: tuple[int, int]
    """The canvas filled up to whole latent pixels, px"""
    grid: Grid
    """How its latent is cut"""
    tiles: int
    """Through the denoiser in one step; both contexts' with guidance"""
    min_canvas_side: int
    """px"""

    @classmethod
    def of(
        cls,
        sides: tuple[int, int],
        options: UpscaleParameters,
        preset: Preset | None = None,
        config: ModelConfig | None = None,
    ) -> Layout:
        """For an image of these sides, px. Without a preset and the configuration of its networks
        they are the catalogue's; there all configurations give the same canvas and tiles.

        Raises:
            InvalidOption: the tiles' overlap is none.
        """
        preset, config = preset or PRESETS[options.preset], config or ModelConfig()
        least = preset.min_canvas_side
        canvas = output_size(*sides, max(options.scale, least / min(sides)))
        # A canvas smaller than a tile is filled up to what the UNet can halve and double again.
        unit, downscale = 2 ** (len(config.unet.widths) - 1), config.autoencoder.downscale
        cells = (-(-side // downscale) for side in canvas)
        rows, columns = (n if n >= preset.tile else -(-n // unit) * unit for n in cells)
        grid = Grid(rows, columns, preset.tile, options.tile_overlap)
        return cls(
            sides,
            output_size(*sides, options.scale),
            canvas,
            (downscale * rows, downscale * columns),
            grid,
            len(grid) * (2 if options.guidance_scale != 1 else 1),
            least,
        )

    @property
    def _reason(self) -> str:
        if self.canvas == self.size:
            return ""
        return f", because its shorter side is enlarged to {self.min_canvas_side} pixels at least"

    @property
    def note(self) -> str | None:
        """A sentence where the canvas has many times the result's pixels."""
        ratio = math.prod(self.canvas) / math.prod(self.size)
        if ratio <= _NOTABLE:
            return None
        height, width = self.canvas
        return (
            f"The image is computed at {width} x {height} pixels, {ratio:.0f} times those of its "
            f"result{self._reason}."
        )

    def check_canvas(self, limit: int = MAX_CANVAS) -> None:
        """Raises InvalidOption for a canvas of more pixels than the limit, or than MAX_CANVAS."""
        (height, width), limit = self.canvas, min(limit, MAX_CANVAS)
        if (pixels := math.prod(self.canvas)) > limit:
            raise InvalidOption(
                f"The image of {self.source[1]} x {self.source[0]} pixels would be computed at "
                f"{width} x {height} = {pixels} pixels{self._reason}; at most {limit} can be."
            )
