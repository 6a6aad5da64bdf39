"""Networks of uneven small widths in float64, none of whose weights is trivial."""

from __future__ import annotations

from dataclasses import replace

import torch

from models.checkpoints.folder import random_networks
from models.config import EncoderConfig, ModelConfig, TextConfig, UNetConfig
from models.networks.bundle import Networks
from tests.models import narrow

CONFIG = ModelConfig(
    unet=UNetConfig(
        widths=(8, 16, 24, 24),
        layers=2,
        head_channels=8,
        context_width=12,
        feature_width=12,
        modulation_width=6,
        groups=4,
    ),
    encoder=EncoderConfig(widths=(8, 16, 24, 24), layers=2, heads=2, feature_width=12, groups=4),
    autoencoder=narrow.AUTOENCODER,
    context_tokens=3,
)


def build(dtype: torch.dtype = torch.float64, *, text: bool = False) -> Networks:
    """The same numbers at every call; biases and norms are not the ones that do nothing."""
    config = replace(CONFIG, text=TextConfig(12, 2, 2, 3, 20)) if text else CONFIG
    networks = random_networks(config, torch.device("cpu"), torch.float64)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in networks.parameters():
            if parameter.ndim == 1:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(noise, alpha=0.2)
        networks.context.normal_(generator=generator)
    return networks.to(dtype)
