"""Autoencoders, images and how whole images are coded."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from models.checkpoints.files import preset_folder
from models.checkpoints.folder import load_folder
from models.config import AutoencoderConfig, CompactConfig
from models.networks.autoencoder import Autoencoder, EncoderOutput
from models.networks.bundle import AnyAutoencoder
from models.networks.compact import CompactAutoencoder
from models.presets import get_preset

CPU = torch.device("cpu")
SMALL = AutoencoderConfig(
    widths=(8, 16, 32, 32), layers=2, latent_channels=4, groups=4, growth=4, fusion_blocks=2
)
"""The released topology, narrow."""
COMPACT = CompactConfig(quarter_width=8, eighth_width=16, layers=11, head_widths=(8, 16, 8))
"""More layers than one pass has."""


def make_small() -> Autoencoder:
    """Random weights; every bias and norm has values of its own."""
    torch.manual_seed(0)
    autoencoder = Autoencoder(SMALL)
    for parameter in autoencoder.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return autoencoder.eval().requires_grad_(False)


def make_compact() -> CompactAutoencoder:
    """No layer is one that does nothing at the start, and slopes differ."""
    torch.manual_seed(0)
    autoencoder = CompactAutoencoder(COMPACT)
    for parameter in autoencoder.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return autoencoder.eval().requires_grad_(False)


def load_tiny() -> AnyAutoencoder:
    """The embedded weights."""
    return load_folder(preset_folder(get_preset("tiny")), CPU, torch.float32).autoencoder


def make_image(height: int, width: int, seed: int = 0) -> Tensor:
    """Shapes with sharp edges and some noise, (1, 3, height, width) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 8 + 1, width // 8 + 1, generator=generator)
    image = F.interpolate(coarse, (height, width))
    return (image + 0.1 * torch.randn(image.shape, generator=generator)).clamp(0, 1) * 2 - 1


def relative_error(result: Tensor, reference: Tensor) -> float:
    return float((result.float() - reference.float()).norm() / reference.float().norm())


def latent_of(autoencoder: AnyAutoencoder, moments: Tensor) -> Tensor:
    """The unscaled latent: the released autoencoder's mean, or all that the compact one gives."""
    return moments[:, : autoencoder.config.latent_channels]


def code_whole(
    autoencoder: AnyAutoencoder, image: Tensor, fidelity: float
) -> tuple[EncoderOutput, Tensor, Tensor, Tensor]:
    """The encoder's output, the latent, and it decoded with and without fusion."""
    output = autoencoder.encode(image)
    latent = latent_of(autoencoder, output.moments)
    fusion = autoencoder.decode(latent, output.features, torch.tensor(fidelity))
    return output, latent, fusion, autoencoder.decode(latent)


def open_files(folder: Path) -> list[str]:
    """Files of the folder that this process holds open, those without a name included."""
    links = (link for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    return [str(link.readlink()) for link in links if str(link.readlink()).startswith(str(folder))]
