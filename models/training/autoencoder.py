"""First stage: the KL autoencoder, trained on plain photographs (arXiv 2112.10752, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.networks.autoencoder import Autoencoder
from models.training.color_path import ANCHOR_SCALE

__all__ = ["autoencoder_loss", "gradient_loss", "is_first_stage", "latent_deviation"]

Crops = Callable[[int], Tensor]
"""Step number -> photographs (n, 3, H, W) in [0, 1]."""

_KL_WEIGHT = 1e-6


def is_first_stage(name: str) -> bool:
    """All of the autoencoder but its fusion layers."""
    return ".fusion." not in name


def gradient_loss(image: Tensor, target: Tensor) -> Tensor:
    """L1 of horizontal and vertical differences at three sizes: keeps edges from smearing."""
    total = image.new_zeros(())
    for _ in range(3):
        for dim in (2, 3):
            total = total + (image.diff(dim=dim) - target.diff(dim=dim)).abs().mean()
        image = torch.nn.functional.avg_pool2d(image, 2)
        target = torch.nn.functional.avg_pool2d(target, 2)
    return total


def _colorful(error: Tensor) -> Tensor:
    """Mean absolute error in which what is not shared by the channels counts fourfold more."""
    return error.abs().mean() + 4 * (error - error.mean(dim=1, keepdim=True)).abs().mean()


def autoencoder_loss(autoencoder: Autoencoder, crops: Crops, seed: int) -> Callable[[int], Tensor]:
    """L1 and gradient L1 of the image, L1 of the anchored colours, and a slight pull of the
    posterior to the standard normal; errors of hue count more than those of brightness."""

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed + step)
        image = crops(step) * 2 - 1
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast(image.device.type, torch.bfloat16):
            moments = autoencoder.encode(image).moments.float()
            mean, log_variance = moments.chunk(2, dim=1)
            log_variance = log_variance.clamp(-30, 20)
            noise = torch.randn(mean.shape, generator=generator).to(mean)
            out = autoencoder.decode(mean + (0.5 * log_variance).exp() * noise).float()
        kl = 0.5 * (mean.pow(2) + log_variance.exp() - 1 - log_variance).sum(dim=(1, 2, 3)).mean()
        color = torch.nn.functional.avg_pool2d(image, autoencoder.config.downscale)
        anchor = _colorful(mean[:, -3:] - ANCHOR_SCALE * color)
        texture = gradient_loss(out, image)
        return _colorful(out - image) + 0.25 * texture + 0.25 * anchor + _KL_WEIGHT * kl

    return loss


@torch.no_grad()
def latent_deviation(autoencoder: Autoencoder, image: Tensor) -> float:
    """Standard deviation of unscaled latents; its inverse is the scaling factor."""
    mean = autoencoder.encode(image * 2 - 1).moments.chunk(2, dim=1)[0]
    return float(mean.std())
