"""Pictures and both ways to code them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from models.networks.autoencoder import Autoencoder, Encoded
from models.pieces import Callbacks, EncodedPieces, Pieces, TapMaps, decode, encode

CPU = torch.device("cpu")


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Shapes with sharp edges and some noise, (1, 3, height, width) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 8 + 1, width // 8 + 1, generator=generator)
    image = F.interpolate(coarse, (height, width))
    return (image + 0.1 * torch.randn(image.shape, generator=generator)).clamp(0, 1) * 2 - 1


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def encode_pieces(
    autoencoder: Autoencoder,
    image: Tensor,
    pieces: Pieces,
    *,
    taps: bool = True,
    callbacks: Callbacks | None = None,
    device: torch.device = CPU,
) -> EncodedPieces:
    dtype = autoencoder.quant_conv.weight.dtype
    return encode(
        autoencoder, image, pieces, device=device, dtype=dtype, taps=taps, callbacks=callbacks
    )


def decode_pieces(
    autoencoder: Autoencoder,
    latent: Tensor,
    taps: TapMaps | None,
    fidelity: float,
    pieces: Pieces,
    *,
    free_taps: bool = False,
    callbacks: Callbacks | None = None,
    device: torch.device = CPU,
) -> Tensor:
    dtype = autoencoder.quant_conv.weight.dtype
    return decode(
        autoencoder,
        latent,
        taps,
        fidelity,
        pieces,
        device=device,
        dtype=dtype,
        free_taps=free_taps,
        callbacks=callbacks,
    )


def coded_whole(
    autoencoder: Autoencoder, image: Tensor, fidelity: float
) -> tuple[Encoded, Tensor, Tensor, Tensor]:
    """What encoding says, the latent, and it decoded with and without fusion."""
    dtype = autoencoder.quant_conv.weight.dtype
    encoded = autoencoder.encode(image.to(dtype))
    latent = encoded.moments.chunk(2, dim=1)[0]
    wrapped = autoencoder.decode(latent, encoded.taps, torch.tensor(fidelity, dtype=dtype))
    return encoded, latent, wrapped, autoencoder.decode(latent)


def open_files(folder: Path) -> list[str]:
    """Files of the folder that this process holds open, those without a name included."""
    links = (link for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    return [str(link.readlink()) for link in links if str(link.readlink()).startswith(str(folder))]
