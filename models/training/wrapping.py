"""Last stage: the fusion layers of CFW, on latents that the model itself sampled (section 3.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.diffusion import DDPM, add_noise
from models.networks.bundle import Networks
from models.training.autoencoder import gradient_loss
from models.training.prior import Pairs

__all__ = ["SampledPairs", "is_wrapping", "wrapping_loss"]


def is_wrapping(name: str) -> bool:
    """Only the fusion layers learn; encoder and decoder stay the first stage's."""
    return ".fusion." in name


@dataclass
class SampledPairs:
    """Photographs, their degraded selves, and the unscaled latents sampled from those."""

    high: Tensor
    """uint8 (n, 3, H, W)"""
    low: Tensor
    """uint8 (n, 3, H, W)"""
    latent: Tensor
    """(n, c, H/8, W/8)"""

    @classmethod
    @torch.no_grad()
    def sample(
        cls, networks: Networks, pairs: Pairs, *, batches: int, steps: int, seed: int
    ) -> SampledPairs:
        """Runs the sampler over `batches` batches of pairs, each image one tile."""
        config = networks.config
        high, low, latents = [], [], []
        for number in range(batches):
            generator = torch.Generator().manual_seed(seed + number)
            photographs, degraded = pairs(number)
            moments = networks.autoencoder.encode(degraded * 2 - 1).moments
            lr = networks.autoencoder.latent(moments)
            stepper = DDPM(steps, config.prediction)

            def noise(
                shape: torch.Size = lr.shape, generator: torch.Generator = generator
            ) -> Tensor:
                return torch.randn(shape, generator=generator)

            # A batch of whole images, each one tile.
            canvas = add_noise(lr, noise(), stepper.timesteps[0])
            context = networks.context.expand(len(lr), -1, -1)
            for index, timestep in enumerate(stepper.timesteps):
                predicted = networks.predict(canvas, lr, [timestep] * len(lr), context)
                fresh = noise() if stepper.needs_noise(index) else None
                canvas = stepper.step(index, canvas, predicted, fresh)
            latents.append(canvas / config.autoencoder.scaling_factor)
            high.append((photographs * 255).round().to(torch.uint8))
            low.append((degraded * 255).round().to(torch.uint8))
        return cls(torch.cat(high), torch.cat(low), torch.cat(latents))


def wrapping_loss(
    networks: Networks, pairs: SampledPairs, *, batch: int, crop: int, seed: int
) -> Callable[[int], Tensor]:
    """L1 and gradient L1 of the decoded image at w = 1, on crops of `crop` latent cells."""
    cell = networks.config.autoencoder.downscale
    cells = pairs.latent.shape[-1]

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed + step)
        picked = torch.randint(len(pairs.high), (batch,), generator=generator).tolist()
        corners = torch.randint(cells - crop + 1, (batch, 2), generator=generator).tolist()
        high, low, latent = [], [], []
        for i, (y, x) in zip(picked, corners, strict=True):
            rows, columns = (slice(cell * v, cell * (v + crop)) for v in (y, x))
            high.append(pairs.high[i, :, rows, columns])
            low.append(pairs.low[i, :, rows, columns])
            latent.append(pairs.latent[i, :, y : y + crop, x : x + crop])
        target = torch.stack(high).float() / 127.5 - 1
        with torch.autocast(target.device.type, torch.bfloat16):
            with torch.no_grad():
                taps = networks.autoencoder.encode(torch.stack(low).float() / 127.5 - 1).taps
            # Contiguous for the reason that `LatentPairs.batch` gives.
            unscaled = torch.stack(latent).contiguous()
            out = networks.autoencoder.decode(unscaled, taps, torch.ones(()))
        out = out.float()
        return (out - target).abs().mean() + 0.25 * gradient_loss(out, target)

    return loss
