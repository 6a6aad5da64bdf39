"""Networks so narrow that a whole image takes milliseconds; their values mean nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch

from models.checkpoints.folder import random_networks
from models.config import AutoencoderConfig, CompactConfig, EncoderConfig, ModelConfig, UNetConfig
from models.memory import MemoryBudget
from models.networks.bundle import Networks
from models.parameters import UpscaleParameters
from models.pipeline import StableSR
from models.presets import Preset

AUTOENCODER = AutoencoderConfig(widths=(8, 8, 8, 8), layers=1, groups=4, growth=4)
COMPACT = CompactConfig(
    quarter_width=8,
    eighth_width=8,
    encoder_blocks=(1, 1),
    layers=2,
    head_widths=(8, 8, 8),
)

CONFIG = ModelConfig(
    unet=UNetConfig(widths=(8, 8, 8, 8), layers=1, head_channels=8, context_width=8, groups=4),
    encoder=EncoderConfig(widths=(8, 8, 8, 8), layers=1, groups=4),
    autoencoder=AUTOENCODER,
    context_tokens=2,
)
"""With the released kind of autoencoder."""
WITH_COMPACT = replace(
    CONFIG,
    unet=replace(CONFIG.unet, in_channels=16, out_channels=16),
    encoder=replace(CONFIG.encoder, in_channels=16),
    autoencoder=COMPACT,
)
PRESET = Preset(
    "narrow", native=64, min_canvas_side=64, tile=8, overlap=4, steps=2, fidelity_weight=0.5
)


def parameters(**values: Any) -> UpscaleParameters:
    """For these networks: their steps and overlap, and seed 0, where the values name none."""
    overlap = values.pop("tile_overlap", PRESET.overlap)
    # A preset of the catalogue that reads prompts.
    values = {"preset": "stablesr-512", "steps": PRESET.steps, "seed": 0, **values}
    return UpscaleParameters.model_validate(values).model_copy(update={"tile_overlap": overlap})


@cache
def networks() -> Networks:
    """One and the same."""
    return random_networks(CONFIG, torch.device("cpu"), torch.float32)


def pipeline(**budget: Any) -> StableSR:
    """Of those networks."""
    cpu, dtype = torch.device("cpu"), torch.float32
    return StableSR(networks(), PRESET, cpu, dtype, MemoryBudget(**budget))
