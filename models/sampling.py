"""The sampler as a generator.

For each step it yields what has to be predicted and is sent the predictions; between the two
somebody else decides what runs together with what. Alone, `drive` answers one generator; the
worker's engine answers many at once. Closing the generator cancels the job.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.diffusion import Stepper
from models.tiling import TileGrid

__all__ = ["NoiseSource", "Sampler", "StepRequest", "drive", "sample"]

NoiseSource = Callable[[], Tensor]
"""Gives the next standard normal canvas (1, c, h, w) of a job."""


@dataclass(frozen=True)
class StepRequest:
    """Tiles of one job at one timestep, waiting for their predictions."""

    noisy: Tensor
    """(n, c, h, w)"""
    lr: Tensor
    """LR latent of the same places, (n, c, h, w)"""
    timestep: int
    """of the full 1000-step schedule"""
    context: Tensor
    """Text embedding of each tile (n, tokens, width)"""
    step: int
    """0-based"""
    steps: int

    def __len__(self) -> int:
        return int(self.noisy.shape[0])


Sampler = Generator[StepRequest, Tensor, Tensor]
"""Yields requests, is sent predictions (n, c, h, w), returns the latent (1, c, H, W)."""


def sample(
    start: Tensor,
    lr: Tensor,
    stepper: Stepper,
    grid: TileGrid,
    noise: NoiseSource,
    context: Tensor,
    negative_context: Tensor | None = None,
    guidance_scale: float = 1.0,
) -> Sampler:
    """Denoises one canvas with aggregation (paper, section 3.4).

    Args:
        start: the noisy canvas at the first timestep (1, c, H, W).
        lr: scaled latent of the upsampled LR image (1, c, H, W).
        stepper: DDPM or DDIM.
        grid: how the canvas is cut.
        noise: fresh noise for each step that asks for it, in order.
        context: (1, tokens, width).
        negative_context: with it, classifier-free guidance of `guidance_scale` (arXiv
            2207.12598) at twice the cost.

    Returns:
        The clean canvas, still scaled, through StopIteration.
    """
    canvas, lr_tiles = start, grid.cut(lr)
    count = len(lr_tiles)
    contexts = context.expand(count, -1, -1)
    if negative_context is not None:
        contexts = torch.cat([contexts, negative_context.expand(count, -1, -1)])
        lr_tiles = lr_tiles.repeat(2, 1, 1, 1)
    steps = len(stepper.timesteps)
    for index, timestep in enumerate(stepper.timesteps):
        tiles = grid.cut(canvas)
        if negative_context is not None:
            tiles = tiles.repeat(2, 1, 1, 1)
        predicted = yield StepRequest(tiles, lr_tiles, timestep, contexts, index, steps)
        if negative_context is not None:
            wanted, unwanted = predicted.chunk(2)
            predicted = unwanted + guidance_scale * (wanted - unwanted)
        fresh = noise() if stepper.needs_noise(index) else None
        canvas = stepper.step(index, canvas, grid.join(predicted), fresh)
    return canvas


def drive(sampler: Sampler, predict: Callable[[StepRequest], Tensor]) -> Tensor:
    """Runs one sampler to its end, alone."""
    try:
        request = next(sampler)
        while True:
            request = sampler.send(predict(request))
    except StopIteration as end:
        latent: Tensor = end.value
        return latent
