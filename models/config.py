"""Sizes of the networks, as frozen dataclasses that a `config.json` holds.

The defaults are the released StableSR (SD 2.1-base widths); the embedded `tiny` and the small
networks of the golden figures are other values of the same fields.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

Prediction = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class UNetConfig:
    """Denoising UNet with feature modulation in every residual block (paper, section 3.2)."""

    in_channels: int = 4
    out_channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: int = 2
    attention: tuple[bool, ...] = (True, True, True, False)
    head_channels: int = 64
    context_width: int = 1024
    feature_width: int = 256
    modulation_width: int = 128
    groups: int = 32

    @property
    def embedding_width(self) -> int:
        return 4 * self.widths[0]


@dataclass(frozen=True)
class EncoderConfig:
    """Time-aware encoder over the LR latent (paper, section 3.1)."""

    in_channels: int = 4
    widths: tuple[int, ...] = (256, 256, 512, 512)
    layers: int = 2
    attention: tuple[bool, ...] = (True, True, True, False)
    heads: int = 4
    feature_width: int = 256
    groups: int = 32

    @property
    def embedding_width(self) -> int:
        return 4 * self.widths[0]


@dataclass(frozen=True)
class AutoencoderConfig:
    """KL autoencoder with controllable feature wrapping (paper, section 3.3)."""

    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    latent_channels: int = 4
    scaling_factor: float = 0.18215
    groups: int = 32
    growth: int = 32
    """Channels each convolution of a residual dense block adds."""
    fusion_blocks: int = 2
    """Residual-in-residual dense blocks in each fusion layer."""

    @property
    def downscale(self) -> int:
        """Side of one latent pixel, px."""
        return int(2 ** (len(self.widths) - 1))

    @property
    def feature_widths(self) -> tuple[tuple[int, int], ...]:
        """Of the encoder features that the decoder's fusion reads: channels, and how much smaller
        than the image."""
        return (self.widths[1], 2), (self.widths[2], 4)


@dataclass(frozen=True)
class CompactConfig:
    """Compact autoencoder with controllable feature wrapping: no norms, no attention, and most of
    its arithmetic at a quarter of the image's size (`models.networks.compact`)."""

    downscale: ClassVar[int] = 8
    """Side of one latent pixel, px."""
    kind: Literal["compact"] = "compact"
    latent_channels: int = 16
    """The first twelve are the image at a quarter of its size, in a Haar basis."""
    latent_scale: tuple[float, ...] = (1.0,) * 16
    """What each channel is multiplied with, so that all have a deviation of about one."""
    quarter_width: int = 64
    eighth_width: int = 128
    encoder_blocks: tuple[int, int] = (2, 1)
    """Residual blocks at a quarter and at an eighth of the size."""
    decoder_blocks: int = 1
    """Residual blocks at an eighth of the size."""
    layers: int = 32
    """Convolutions of the decoder at a quarter of the size, after the first."""
    head_widths: tuple[int, int, int] = (48, 24, 16)
    """Channels at a quarter, at half and at all of the size, at the decoder's end."""

    @property
    def feature_widths(self) -> tuple[tuple[int, int], ...]:
        """As of `AutoencoderConfig`; with them the image itself."""
        return ((self.quarter_width + 3, 4),)


@dataclass(frozen=True)
class TextConfig:
    """OpenCLIP text tower (ViT-H)."""

    width: int = 1024
    layers: int = 24
    """Of the whole tower; the last one is not used, and not held."""
    heads: int = 16
    tokens: int = 77
    vocabulary: int = 49408


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to build the networks of one set of weights and to sample with them."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    autoencoder: AutoencoderConfig | CompactConfig = field(default_factory=AutoencoderConfig)
    text: TextConfig | None = None
    prediction: Prediction = "epsilon"
    first_timestep: int = 999
    """Where the sampler `ddpm` begins from the LR latent."""
    noised_start: bool = True
    """Whether that latent is noised as far as the first timestep, as in the paper; weights that
    were distilled to few steps may take it as it is."""
    grain: float = 0.0
    """Noise at a fidelity weight of 0, over the contrast that is there (`models.grain`)."""
    context_tokens: int = 77

    @property
    def released_autoencoder(self) -> AutoencoderConfig:
        """Of released files."""
        assert isinstance(self.autoencoder, AutoencoderConfig)
        return self.autoencoder

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelConfig:
        """Inverse of `to_json`; unknown fields raise TypeError naming them."""
        values = dict(data)
        values["unet"] = UNetConfig(**_tuples(values["unet"]))
        values["encoder"] = EncoderConfig(**_tuples(values["encoder"]))
        compact = values["autoencoder"].get("kind") == "compact"
        kind = CompactConfig if compact else AutoencoderConfig
        values["autoencoder"] = kind(**_tuples(values["autoencoder"]))
        if values.get("text") is not None:
            values["text"] = TextConfig(**values["text"])
        return cls(**values)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows lists only; the dataclasses hold tuples so that they stay hashable."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
