"""Networks so narrow that a whole image takes milliseconds; their values mean nothing."""

from __future__ import annotations

from models.config import AutoencoderConfig, EncoderConfig, ModelConfig, UNetConfig
from models.presets import Preset

__all__ = ["CONFIG", "PRESET"]

CONFIG = ModelConfig(
    unet=UNetConfig(widths=(8, 8, 8, 8), layers=1, head_channels=8, context_width=8, groups=4),
    encoder=EncoderConfig(widths=(8, 8, 8, 8), layers=1, groups=4),
    autoencoder=AutoencoderConfig(widths=(8, 8, 8, 8), layers=1, groups=4, growth=4),
    context_tokens=2,
)
PRESET = Preset("narrow", native=64, tile=8, steps=2, fidelity_weight=0.5)
