"""Autoencoders and pictures that the tests of strips share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from models.checkpoints.folder import load_folder, preset_folder
from models.config import AutoencoderConfig
from models.networks.autoencoder import Autoencoder
from models.networks.bundle import AnyAutoencoder
from models.presets import get_preset

SMALL = AutoencoderConfig(
    widths=(8, 16, 32, 32), layers=2, latent_channels=4, groups=4, growth=4, fusion_blocks=2
)
"""The released topology, narrow."""


def make_small() -> Autoencoder:
    """Random weights; every bias and norm has values of its own."""
    torch.manual_seed(0)
    autoencoder = Autoencoder(SMALL)
    for parameter in autoencoder.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return autoencoder.eval().requires_grad_(False)


def make_tiny() -> AnyAutoencoder:
    """The embedded weights."""
    folder = preset_folder(get_preset("tiny"))
    return load_folder(folder, torch.device("cpu"), torch.float32).autoencoder


@pytest.fixture(scope="session")
def small() -> Autoencoder:
    return make_small()


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield
