"""The sampler as a generator.

For each step it yields what has to be predicted and is sent the predictions. `drive_all` answers
generators that begin together; the worker's engine answers those of all running jobs. Closing the
generator cancels the job.

A step holds its canvas once. Its tiles, which overlap, are cut when a network call asks for them,
and their predictions are averaged as they arrive: however large the canvas, only the tiles of one
call are ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import torch
from torch import Tensor

from models.config import ModelConfig
from models.parameters import UpscaleParameters
from models.presets import Preset
from models.schedulers import TRAINING_STEPS, Scheduler, add_noise, make_scheduler
from models.tiling import TileGrid


@dataclass(frozen=True)
class StepRequest:
    """Tiles of one job at one timestep, as a network call takes them."""

    noisy: Tensor
    """(n, c, h, w)"""
    lr: Tensor
    """LR latent of the same places, (n, c, h, w)"""
    timestep: int
    """of the full 1000-step schedule"""
    context: Tensor | None
    """Text embedding of each tile (n, tokens, width); None is the empty prompt's, for all"""
    step: int
    """0-based"""
    steps: int

    def __len__(self) -> int:
        return int(self.noisy.shape[0])

    @property
    def tile_size(self) -> tuple[int, int]:
        """(h, w) of a tile, latent pixels: one network call has tiles of one size."""
        return self.noisy.shape[2], self.noisy.shape[3]

    def part(self, start: int, stop: int) -> StepRequest:
        """Tiles `start` to `stop`, as views."""
        cut = slice(start, stop)
        return replace(
            self,
            noisy=self.noisy[cut],
            lr=self.lr[cut],
            context=None if self.context is None else self.context[cut],
        )


@dataclass(frozen=True)
class CanvasStep:
    """A step over a whole canvas: `len(contexts)` times every tile of it, in that order."""

    grid: TileGrid
    canvas: Tensor
    """Noisy, (1, c, H, W)"""
    lr: Tensor
    """Scaled latent of the upsampled LR image, (1, c, H, W)"""
    timestep: int
    contexts: tuple[Tensor | None, ...]
    """Each (1, tokens, width); None is the empty prompt's, and stands alone"""
    step: int
    steps: int

    def __len__(self) -> int:
        return len(self.contexts) * len(self.grid)

    @property
    def tile_size(self) -> tuple[int, int]:
        """(h, w) of a tile, latent pixels."""
        return self.grid.tile_height, self.grid.tile_width

    def part(self, start: int, stop: int) -> StepRequest:
        """Tiles `start` to `stop`, cut from the canvas now."""
        tiles = len(self.grid)
        origins = [self.grid.origins[i % tiles] for i in range(start, stop)]
        contexts = [self.contexts[i // tiles] for i in range(start, stop)]
        embeddings = [context for context in contexts if context is not None]
        return StepRequest(
            self.grid.cut(self.canvas, origins),
            self.grid.cut(self.lr, origins),
            self.timestep,
            torch.cat(embeddings) if embeddings else None,
            self.step,
            self.steps,
        )


Step = CanvasStep | StepRequest
"""All tiles of one job at one timestep, waiting for their predictions."""

Sampler = Generator[Step, Iterable[Tensor], Tensor]
"""Yields steps, is sent the prediction (c, h, w) of each tile in order, returns the latent
(1, c, H, W). It takes no more predictions than there are tiles, each when it needs it."""


def sample(
    start: Tensor,
    lr: Tensor,
    scheduler: Scheduler,
    grid: TileGrid,
    noise: Callable[[], Tensor],
    context: Tensor | None,
    negative_context: Tensor | None = None,
    guidance_scale: float = 1.0,
) -> Sampler:
    """Denoises one canvas with aggregation (paper, section 3.4): the clean one, still scaled.

    Args:
        start: the noisy canvas at the first timestep (1, c, H, W).
        lr: scaled latent of the upsampled LR image (1, c, H, W).
        scheduler: of this canvas alone.
        grid: how it is cut.
        noise: fresh noise for each step that asks for it, in order.
        context: (1, tokens, width), or None for the empty prompt's; not with a negative one, which
            asks for classifier-free guidance (arXiv 2207.12598) at twice the cost.
    """
    canvas = start
    contexts = (context,) if negative_context is None else (context, negative_context)
    steps = len(scheduler.timesteps)
    for index, timestep in enumerate(scheduler.timesteps):
        step = CanvasStep(grid, canvas, lr, timestep, contexts, index, steps)
        tiles = iter((yield step))
        prediction = grid.join(tiles)
        if negative_context is not None:
            negative = grid.join(tiles)
            prediction = negative + guidance_scale * (prediction - negative)
        fresh = noise() if scheduler.needs_noise(index) else None
        canvas = scheduler.step(index, canvas, prediction, fresh)
    return canvas


def sample_image(
    lr: Tensor,
    config: ModelConfig,
    preset: Preset,
    options: UpscaleParameters,
    context: Tensor | None,
    negative_context: Tensor | None,
) -> Sampler:
    """`sample` as the options and the weights ask for it; the arguments are as there.

    Noise is drawn on the host from one generator, in order, so it depends on the seed and the
    canvas alone.

    Raises:
        InvalidOption: steps, sampler or overlap outside their ranges; at once, not at the first
            step.
    """
    # Weights are distilled to DDPM from the LR latent alone.
    distillation = options.sampler == "ddpm" and options.start == "lr"
    scheduler = make_scheduler(
        options.sampler,
        options.steps,
        config.prediction,
        options.eta,
        config.first_timestep if distillation else TRAINING_STEPS - 1,
    )
    grid = TileGrid(lr.shape[2], lr.shape[3], preset.tile, options.tile_overlap)
    generator = torch.Generator().manual_seed(options.seed)

    def noise() -> Tensor:
        return torch.randn(lr.shape, generator=generator).to(lr.device)

    start = noise()
    if distillation and not config.noised_start:
        start = lr
    elif options.start == "lr":
        start = add_noise(lr, start, scheduler.timesteps[0])
    scale = options.guidance_scale
    return sample(start, lr, scheduler, grid, noise, context, negative_context, scale)


def drive_all(
    samplers: Sequence[Sampler],
    predict: Callable[[Sequence[StepRequest]], Sequence[Tensor]],
    max_tiles: int,
) -> list[Tensor]:
    """The latent of each sampler, in their order: all run to their ends together, in network calls
    of at most `max_tiles` that they share. They may differ in steps and in tiles, whose size is
    one. `predict` gives a (n, c, h, w) for each request."""
    latents: dict[int, Tensor] = {}
    waiting = {index: next(sampler) for index, sampler in enumerate(samplers)}
    while waiting:
        predictions = _predictions(list(waiting.values()), predict, max_tiles)
        for index, step in list(waiting.items()):
            try:
                waiting[index] = samplers[index].send(islice(predictions, len(step)))
            except StopIteration as end:
                latents[index] = end.value
                del waiting[index]
    return [latents[index] for index in range(len(samplers))]


def _predictions(
    steps: Sequence[Step],
    predict: Callable[[Sequence[StepRequest]], Sequence[Tensor]],
    max_tiles: int,
) -> Iterator[Tensor]:
    """The prediction of every tile of these steps, in order, a call being made when needed."""
    batch: list[StepRequest] = []
    room = max_tiles
    for step in steps:
        start = 0
        while start < len(step):
            if not room:
                yield from chain.from_iterable(predict(batch))
                batch, room = [], max_tiles
            stop = min(len(step), start + room)
            batch.append(step.part(start, stop))
            start, room = stop, room - (stop - start)
    yield from chain.from_iterable(predict(batch))
