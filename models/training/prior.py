"""Second stage: the diffusion prior, and the pairs of latents it and the guidance learn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.config import Prediction
from models.diffusion import TRAINING_STEPS, alphas_cumprod
from models.networks.autoencoder import Autoencoder
from models.networks.encoder import TimeAwareEncoder
from models.networks.unet import ModulatedUNet

__all__ = [
    "LatentPairs",
    "Pairs",
    "diffusion_loss",
    "is_guidance",
    "is_prior",
    "open_modulation",
]

Pairs = Callable[[int], tuple[Tensor, Tensor]]
"""Step number -> photographs and their upsampled degraded selves, (n, 3, H, W) in [0, 1]."""

_MODULATION = (".modulation.shared.", ".modulation.gamma.", ".modulation.beta.")


def is_prior(name: str) -> bool:
    """What a UNet without guidance consists of, its modulation's normalisation included."""
    return name == "context" or (
        name.startswith("unet.") and not any(m in name for m in _MODULATION)
    )


def is_guidance(name: str) -> bool:
    """The time-aware encoder and the modulation: all that the paper's fine-tuning trains."""
    return name.startswith("encoder.") or ".modulation." in name


def open_modulation(unet: ModulatedUNet) -> None:
    """Makes gamma and beta zero, so that the guidance starts from the prior as it is."""
    for name, parameter in unet.named_parameters():
        if ".modulation.gamma." in name or ".modulation.beta." in name:
            nn.init.zeros_(parameter)


@dataclass
class LatentPairs:
    """Scaled latents of photographs and of their upsampled degraded selves, computed once."""

    high: Tensor
    """(n, c, h, w)"""
    low: Tensor
    """(n, c, h, w)"""

    @classmethod
    @torch.no_grad()
    def encode(cls, autoencoder: Autoencoder, pairs: Pairs, batches: int) -> LatentPairs:
        high: list[Tensor] = []
        low: list[Tensor] = []
        for step in range(batches):
            for images, to in zip(pairs(step), (high, low), strict=True):
                with torch.autocast(images.device.type, torch.bfloat16):
                    moments = autoencoder.encode(images * 2 - 1).moments.float()
                to.append(autoencoder.latent(moments))
        return cls(torch.cat(high), torch.cat(low))

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random pairs. Mirroring belongs to the photographs: the autoencoder is not symmetric."""
        chosen = torch.randint(len(self.high), (size,), generator=generator)
        # A channels-last autoencoder leaves its layout on the latents, and torch 2.13's group
        # norm of that layout crashes in the backward pass under autocast when its own weights
        # are frozen, as they are in the guidance.
        return self.high[chosen].contiguous(), self.low[chosen].contiguous()


def diffusion_loss(
    unet: ModulatedUNet,
    encoder: TimeAwareEncoder | None,
    context: Tensor,
    pairs: LatentPairs,
    *,
    batch: int,
    seed: int,
    prediction: Prediction,
) -> Callable[[int], Tensor]:
    """Mean squared error of the predicted epsilon or v; without an encoder, of the prior alone."""
    alphas = torch.from_numpy(alphas_cumprod()).float()

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed + step)
        high, low = pairs.batch(batch, generator)
        # One draw from each of `batch` equal stretches of the schedule: less noise in the loss.
        drawn = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        timestep = (drawn * TRAINING_STEPS).long().clamp(max=TRAINING_STEPS - 1)
        a = alphas[timestep].view(-1, 1, 1, 1)
        noise = torch.randn(high.shape, generator=generator)
        noisy = a.sqrt() * high + (1 - a).sqrt() * noise
        target = noise if prediction == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * high
        with torch.autocast(high.device.type, torch.bfloat16):
            if encoder is None:
                width = unet.config.feature_width
                n, _, h, w = high.shape
                features = [
                    high.new_zeros(n, width, h >> i, w >> i) for i in range(len(unet.config.widths))
                ]
            else:
                features = encoder(low, timestep)
            predicted = unet(noisy, timestep, context.expand(batch, -1, -1), features)
        return torch.nn.functional.mse_loss(predicted.float(), target)

    return loss
