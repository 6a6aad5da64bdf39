"""Pictures and both ways to code them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from models.networks.autoencoder import EncoderOutput
from models.networks.bundle import AnyAutoencoder
from models.strips import Callbacks, EncodedStrips, StripConfig, decode, encode
from models.strips.store import FeatureMap

CPU = torch.device("cpu")


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Shapes with sharp edges and some noise, (1, 3, height, width) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 8 + 1, width // 8 + 1, generator=generator)
    image = F.interpolate(coarse, (height, width))
    return (image + 0.1 * torch.randn(image.shape, generator=generator)).clamp(0, 1) * 2 - 1


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def dtype_of(autoencoder: AnyAutoencoder) -> torch.dtype:
    return next(autoencoder.parameters()).dtype


def latent_of(autoencoder: AnyAutoencoder, moments: Tensor) -> Tensor:
    """The unscaled latent: the released autoencoder's mean, or all that the compact one gives."""
    return moments[:, : autoencoder.config.latent_channels]


def encode_strips(
    autoencoder: AnyAutoencoder,
    image: Tensor,
    strips: StripConfig,
    *,
    features: bool = True,
    callbacks: Callbacks | None = None,
    device: torch.device = CPU,
) -> EncodedStrips:
    dtype = dtype_of(autoencoder)
    return encode(
        autoencoder,
        image,
        strips,
        device=device,
        dtype=dtype,
        features=features,
        callbacks=callbacks,
    )


def decode_strips(
    autoencoder: AnyAutoencoder,
    latent: Tensor,
    features: tuple[FeatureMap, ...],
    fidelity: float,
    strips: StripConfig,
    *,
    free_features: bool = False,
    callbacks: Callbacks | None = None,
    device: torch.device = CPU,
) -> Tensor:
    dtype = dtype_of(autoencoder)
    return decode(
        autoencoder,
        latent,
        features,
        fidelity,
        strips,
        device=device,
        dtype=dtype,
        free_features=free_features,
        callbacks=callbacks,
    )


def coded_whole(
    autoencoder: AnyAutoencoder, image: Tensor, fidelity: float
) -> tuple[EncoderOutput, Tensor, Tensor, Tensor]:
    """What encoding says, the latent, and it decoded with and without fusion."""
    dtype = dtype_of(autoencoder)
    encoded = autoencoder.encode(image.to(dtype))
    latent = latent_of(autoencoder, encoded.moments)
    wrapped = autoencoder.decode(latent, encoded.features, torch.tensor(fidelity, dtype=dtype))
    return encoded, latent, wrapped, autoencoder.decode(latent)


def open_files(folder: Path) -> list[str]:
    """Files of the folder that this process holds open, those without a name included."""
    links = (link for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    return [str(link.readlink()) for link in links if str(link.readlink()).startswith(str(folder))]
