"""What a caller may choose for one image."""

from __future__ import annotations

from dataclasses import dataclass

from models.color import ColorFix
from models.diffusion import SamplerName
from models.errors import InvalidOption

__all__ = ["MAX_SCALE", "Options"]

MAX_SCALE = 16.0


@dataclass(frozen=True)
class Options:
    """What a caller may choose for one image.

    Raises:
        InvalidOption: a value outside its range, with the range.
    """

    fidelity_weight: float = 0.5
    """w of CFW: 0 trusts the prior, 1 the input (paper, section 3.3)"""
    scale: float = 4.0
    steps: int | None = None
    """None: the preset's"""
    sampler: SamplerName = "ddpm"
    color_fix: ColorFix = "adain"
    seed: int = 0
    tile_overlap: int | None = None
    """Latent cells; None: half a tile"""

    def __post_init__(self) -> None:
        if not 0 <= self.fidelity_weight <= 1:
            raise InvalidOption(
                f"fidelity_weight is {self.fidelity_weight}, but must be between 0 and 1."
            )
        if not 1 <= self.scale <= MAX_SCALE:
            raise InvalidOption(f"scale is {self.scale}, but must be between 1 and {MAX_SCALE:g}.")
