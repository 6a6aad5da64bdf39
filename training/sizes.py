"""Sizes of networks that are trained from random numbers.

`tiny` is the embedded default: every part of StableSR, small enough for two CPU cores.
"""

from __future__ import annotations

from models.config import CompactConfig, EncoderConfig, ModelConfig, UNetConfig

__all__ = ["SIZES", "TINY"]

TINY = ModelConfig(
    unet=UNetConfig(
        in_channels=16,
        out_channels=16,
        widths=(64, 96, 128, 128),
        layers=1,
        # 4096 tokens of self-attention at the finest level cost as much as all the rest.
        attention=(False, True, True, False),
        head_channels=32,
        context_width=32,
        feature_width=48,
        modulation_width=32,
        # Groups of two channels, as version 1 had at the finest level, normalise too much away.
        groups=8,
    ),
    encoder=EncoderConfig(
        in_channels=16,
        widths=(48, 64, 64, 64),
        layers=1,
        attention=(False, True, True, False),
        heads=4,
        feature_width=48,
        groups=8,
    ),
    autoencoder=CompactConfig(),
    # Far fewer steps than the released 200: v keeps the early ones stable.
    prediction="v_prediction",
    # One step from the LR latent as it is. From pure noise the guidance has to hand the whole image
    # to a frozen UNet, which it had not learned after 200 steps; from here it had after 20.
    first_timestep=250,
    noised_start=False,
    context_tokens=4,
)

SIZES = {"tiny": TINY, "full": ModelConfig()}
"""By the name that a configuration gives; `full` is the released StableSR's."""
