"""What may be chosen for one image: the one place for command, form, queue and pipeline.

Free of torch, because the HTTP service reads it as well.
"""

from __future__ import annotations

import math
import secrets
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from models.presets import PRESETS, ColorFix, Preset

SamplerName = Literal["ddpm", "ddim", "dpmpp", "unipc"]
Init = Literal["lr", "noise"]
Alpha = Literal["soft", "binary"]
OutputFormat = Literal["png", "webp", "jpeg", "tiff", "avif"]
MetadataChoice = Literal["strip", "keep", "all"]
LOSSY = frozenset(("webp", "jpeg", "avif"))

MAX_SCALE = 16
MAX_PAGE = 65_535
MAX_SIDE = 65_535
"""Of a result that is asked for by its size, px."""
# What torch.Generator.manual_seed takes and a JSON number keeps exactly in every client.
SEED_MAX = 2**32 - 1
# Characters; the text tower reads 75 tokens, of four characters each or so.
PROMPT_MAX = 1000
MIN_OVERLAP = 8
"""Latent pixels: with less, tiles show."""


class UpscaleParameters(BaseModel):
    """What is asked for, complete: whatever was left out is the preset's default.

    A seed is drawn when none is given, so that a job run again gives the same image. `None` means
    "left out" for every field, which lets a form pass on what it has. What is out of range, or has
    no effect beside the other choices, raises pydantic's ValidationError.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    preset: str = "tiny"
    fidelity_weight: float = Field(
        0.5, ge=0, le=1, description="0: most detail; 1: closest to the input"
    )
    """w of CFW (paper, section 3.3)"""
    scale: float = Field(4.0, ge=1, le=MAX_SCALE, description="Result side / input side")
    width: int | None = Field(
        None, ge=1, le=MAX_SIDE, description="Of the result at most, px, in place of scale"
    )
    height: int | None = Field(
        None, ge=1, le=MAX_SIDE, description="Of the result at most, px, in place of scale"
    )
    megapixels: float | None = Field(
        None, ge=0.001, le=1000, description="Of the result, in place of scale"
    )
    page: int | None = Field(
        None, ge=1, le=MAX_PAGE, description="Of a TIFF of several, from 1; 1 of an animation"
    )
    steps: int = Field(4, ge=1, le=1000, description="Denoising steps")
    sampler: SamplerName = "ddpm"
    eta: float | None = Field(
        None, ge=0, le=1, description="Noise of the sampler ddim; 1 when left out"
    )
    start: Init = Field("lr", description="Begin at the noised input, or at noise alone")
    prompt: str = Field(
        "",
        max_length=PROMPT_MAX,
        description="What the image shows; GET /models says which presets read it",
    )
    negative_prompt: str = Field(
        "", max_length=PROMPT_MAX, description="What guidance leads away from"
    )
    guidance_scale: float = Field(
        1.0, ge=1, le=20, description="1: none; above: closer to the prompt, at twice the work"
    )
    """Of classifier-free guidance (arXiv 2207.12598)"""
    color_fix: ColorFix = Field("adain", description="To the input; left out, the preset's")
    seed: int = Field(ge=0, le=SEED_MAX, default_factory=lambda: secrets.randbelow(SEED_MAX + 1))
    tile_overlap: int = Field(
        32, ge=MIN_OVERLAP, le=56, multiple_of=8, description="Latent pixels shared by two tiles"
    )
    alpha: Alpha = Field("soft", description="Of the result; binary: opaque or not, as of sprites")
    output_format: OutputFormat = "png"
    quality: int | None = Field(
        None, ge=1, le=100, description="Of webp, jpeg and avif; 95 when left out"
    )
    # A service must not hand on where a photograph was taken unless it is asked to.
    metadata: MetadataChoice = Field(
        "strip",
        description="Of the input, for the result: none; date, author, density and such; the "
        "location too. Kept with them is how the result was made",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = {name: value for name, value in values.items() if value is not None}
        name = values.get("preset", "tiny")
        if isinstance(name, str) and (preset := PRESETS.get(name)):
            values.setdefault("steps", preset.steps)
            values.setdefault("fidelity_weight", preset.fidelity_weight)
            values.setdefault("color_fix", preset.color_fix)
        return values

    @field_validator("preset")
    @classmethod
    def _check_preset(cls, name: str) -> str:
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}")
        return name

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _strip(cls, text: str) -> str:
        return text.strip()

    @model_validator(mode="after")
    def _check_combination(self) -> UpscaleParameters:
        """Refuses what the preset or the other choices would silently undo."""
        if self.quality is not None and self.output_format not in LOSSY:
            raise ValueError(f"quality must be left out for {self.output_format}, which loses none")
        sizes = self._sizes
        if sizes and "scale" in self.model_fields_set:
            raise ValueError(f"scale must be left out beside {sizes[0]}, which says the size too")
        if "megapixels" in sizes and len(sizes) > 1:
            raise ValueError(f"megapixels must be left out beside {sizes[0]}")
        if not PRESETS[self.preset].prompts and (self.prompt or self.negative_prompt):
            name = "prompt" if self.prompt else "negative_prompt"
            raise ValueError(
                f"{name} must be left out for {self.preset}, whose weights hold no text tower"
            )
        if self.eta is not None and self.sampler != "ddim":
            raise ValueError(
                f"eta must be left out for the sampler {self.sampler}; only ddim takes it"
            )
        if self.negative_prompt and self.guidance_scale == 1:
            raise ValueError("negative_prompt needs a guidance_scale above 1")
        if self.guidance_scale > 1 and not self.prompt and not self.negative_prompt:
            raise ValueError(
                "guidance_scale must be 1 without prompt and negative_prompt; "
                f"got {self.guidance_scale:g}"
            )
        return self

    @property
    def _sizes(self) -> list[str]:
        names = ("width", "height", "megapixels")
        return [name for name in names if getattr(self, name) is not None]

    def for_image(self, width: int, height: int) -> UpscaleParameters:
        """The same with the scale that gives an image of these sides, px, the size asked for. Of
        `width` and `height` the result has one, and at most the other: it keeps its aspect.

        Raises:
            ValueError: it is smaller than the image, or over MAX_SCALE times as large.
        """
        if not (sizes := self._sizes):
            return self
        scales = [
            limit / side for limit, side in ((self.width, width), (self.height, height)) if limit
        ]
        scale = min(scales, default=0.0)
        if self.megapixels is not None:
            scale = math.sqrt(self.megapixels * 1e6 / (width * height))
        if not 1 <= scale <= MAX_SCALE:
            raise ValueError(
                f"{sizes[0]} asks for {scale:.3g} times the image of {width} x {height} pixels; "
                f"1 to {MAX_SCALE} times can be made"
            )
        return self.model_copy(update={**dict.fromkeys(sizes), "scale": scale})


def preset_parameters(preset: Preset, **values: Any) -> UpscaleParameters:
    """Parameters of a measurement: seed 0, and the preset's own defaults where no value is given.

    As everywhere, None means left out. The preset need not be in the catalogue, nor the overlap be
    one that a job may have.
    """
    values = {name: value for name, value in values.items() if value is not None}
    overlap = values.pop("tile_overlap", preset.overlap)
    defaults = {
        "preset": preset.name if preset.name in PRESETS else "tiny",
        "steps": preset.steps,
        "fidelity_weight": preset.fidelity_weight,
        "color_fix": preset.color_fix,
        "seed": 0,
    }
    parameters = UpscaleParameters.model_validate({**defaults, **values})
    return parameters.model_copy(update={"tile_overlap": overlap})
