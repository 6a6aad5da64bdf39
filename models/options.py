"""What a caller may choose for one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from models.errors import InvalidOption

__all__ = ["MAX_GUIDANCE", "MAX_SCALE", "ColorFix", "Options", "SamplerName", "Start"]

MAX_SCALE = 16.0
MAX_GUIDANCE = 20.0

ColorFix = Literal["adain", "wavelet", "none"]
SamplerName = Literal["ddpm", "ddim", "dpmpp", "unipc"]
Start = Literal["lr", "noise"]


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
    eta: float | None = None
    """Noise of the ddim sampler, 0 to 1; None: 1"""
    start: Start = "lr"
    """Where sampling begins: the LR latent noised to the first timestep, or noise alone"""
    prompt: str = ""
    negative_prompt: str = ""
    """What guidance leads away from"""
    guidance_scale: float = 1.0
    """1: no guidance; above, classifier-free guidance (arXiv 2207.12598) at twice the cost"""
    color_fix: ColorFix = "adain"
    seed: int = 0
    tile_overlap: int | None = None
    """Latent cells; None: the preset's"""

    def __post_init__(self) -> None:
        if not 0 <= self.fidelity_weight <= 1:
            raise InvalidOption(
                f"fidelity_weight is {self.fidelity_weight}, but must be between 0 and 1."
            )
        if not 1 <= self.scale <= MAX_SCALE:
            raise InvalidOption(f"scale is {self.scale}, but must be between 1 and {MAX_SCALE:g}.")
        if self.eta is not None and self.sampler != "ddim":
            raise InvalidOption(
                f"eta is {self.eta} with the sampler {self.sampler}, but only ddim takes an eta."
            )
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise InvalidOption(f"eta is {self.eta}, but must be between 0 and 1.")
        if self.start not in get_args(Start):
            raise InvalidOption(f"start is {self.start!r}, but must be lr or noise.")
        self._check_guidance()

    def _check_guidance(self) -> None:
        if not 1 <= self.guidance_scale <= MAX_GUIDANCE:
            raise InvalidOption(
                f"guidance_scale is {self.guidance_scale}, but must be between 1 and "
                f"{MAX_GUIDANCE:g}."
            )
        if self.negative_prompt and self.guidance_scale == 1:
            raise InvalidOption(
                "negative_prompt has no effect at guidance_scale 1, which must be above 1 with it."
            )
        if self.guidance_scale > 1 and not self.prompt and not self.negative_prompt:
            raise InvalidOption(
                f"guidance_scale is {self.guidance_scale}, but without prompt and negative_prompt "
                "it has no effect and must be 1."
            )
