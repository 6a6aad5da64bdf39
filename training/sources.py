"""What the stages learn from: images, latents, the teacher's pairs, sampled latents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from models.networks.bundle import Networks, channels_last
from models.schedulers import DDPM, add_noise
from training.config import CfwSettings, DenoisingSettings, MixedStage, RunSettings, StageName
from training.pairs import (
    SCALE,
    Batch,
    Pairs,
    generator_of,
    read_photographs,
    stream,
    upsample,
)
from training.realesrgan import RRDBNet
from training.shards import Shards

TEACHER = "teacher"
"""Folder of a run with the teacher's batches, and the name of its images in them."""

# Spreads what is drawn a share of the time evenly over the numbers of the batches.
_GOLDEN = (5**0.5 - 1) / 2
_FIRST_STAGE = ("autoencoder.encoder.", "autoencoder.quant_conv.", "first_stage.")


def sample_latent(
    networks: Networks, lr: Tensor, steps: int, noise: Iterator[Tensor], learning: int = 0
) -> Tensor:
    """What DDPM ends in, each image one tile, as the pipeline samples; unscaled.

    Args:
        networks: with their guidance.
        lr: latents of the degraded images, (n, c, h, w).
        steps: of the sampler.
        noise: as `lr`, first that of the start, then that of each step.
        learning: so many last steps have a gradient.
    """
    config = networks.config
    scheduler = DDPM(steps, config.prediction, config.first_timestep)
    initial = next(noise)
    canvas = add_noise(lr, initial, scheduler.timesteps[0]) if config.noised_start else lr
    context = networks.context.expand(len(lr), -1, -1)
    for index, timestep in enumerate(scheduler.timesteps):
        with torch.set_grad_enabled(torch.is_grad_enabled() and index >= steps - learning):
            prediction = networks.predict(canvas, lr, [timestep] * len(lr), context).float()
            step_noise = next(noise) if scheduler.needs_noise(index) else None
            canvas = scheduler.step(index, canvas, prediction, step_noise)
    return networks.autoencoder.unscale(canvas)


class Sources:
    """Of one stage: what is made once lies in its folder, and the teacher's pairs beside it."""

    def __init__(
        self,
        settings: RunSettings,
        folder: Path,
        accelerator: Accelerator,
        on_progress: Callable[[str], None],
    ) -> None:
        self._settings, self._folder = settings, folder
        self._accelerator, self._on_progress = accelerator, on_progress
        self._data = settings.data.model_dump(mode="json")
        self._device, self._rank = accelerator.device, accelerator.process_index

    def teacher(self) -> Shards:
        """What another network makes of degraded photographs, all of it made: batches of `high` and
        `teacher`, uint8 (n, 3, crop, crop), and `low`, a quarter of the side; a unit is a pixel of
        `low`, and each part begins with a latent pixel.

        Raises:
            ModelFileUnreadable: the teacher's weights cannot be read.
        """
        s = self._settings
        assert s.teacher is not None  # the settings refuse that
        table, seed = s.teacher, stream(s.seed, TEACHER)
        pairs = self._pairs(table.crop, table.batch, seed)

        @cache
        def load_network() -> RRDBNet:
            network = RRDBNet.from_model(table.network).to(self._device)
            channels_last(network)
            return network

        @torch.inference_mode()
        def make_batch(number: int) -> Batch:
            network, batch = load_network(), pairs.at(number)
            # One by one: a whole batch of these maps would leave the processor's caches.
            images = [network(image) for image in torch.split(batch["low"], 1)]
            return _levels({**batch, TEACHER: torch.cat(images).clamp(0, 1)})

        settings = table.model_dump(mode="json", exclude={"batches"})
        origin = {"data": self._data, "teacher": settings, "seed": seed}
        units = {"high": SCALE, TEACHER: SCALE, "low": 1}
        folder = self._folder.parent / TEACHER
        shards = Shards(folder, make_batch, table.batches, origin, units, step=2, orientations=8)
        shards.make(self._accelerator, self._on_progress)
        return shards

    def images(self, table: MixedStage, seed: int, *, low: bool = False) -> Callable[[int], Batch]:
        """Number of a batch -> images `high` (n, 3, H, W) in [0, 1], some the teacher's; with `low`
        also what they are to be restored from, upsampled."""
        pairs = self._pairs(table.crop, table.loop.batch, seed)
        shards = self.teacher() if table.teacher_share else None

        def batch(number: int) -> Batch:
            if shards is not None and (number * _GOLDEN) % 1 < table.teacher_share:
                names = (TEACHER, "low") if low else (TEACHER,)
                generator = generator_of(seed, number)
                crops = shards.crops(names, table.loop.batch, table.crop // SCALE, generator)
                images = {"high": crops.pop(TEACHER), **crops}
            else:
                images = pairs.at(number) if low else {"high": pairs.high(number)}
            if low:
                images["low"] = upsample(images["low"])
            return {name: image.to(self._device) for name, image in images.items()}

        return batch

    def latents(
        self, stage: StageName, table: DenoisingSettings, networks: Networks
    ) -> Callable[[int], Batch]:
        """Number of a batch -> scaled latents (n, c, h, w) of images, `high`, and for the guidance
        of degraded ones, `low`."""
        seed = stream(self._settings.seed, f"{stage}/pairs", 0 if table.cached else self._rank)
        first_stage = networks.first_stage or networks.autoencoder
        images = self.images(table, seed, low=stage == "encoder")

        def encode(image: Tensor) -> Tensor:
            with torch.no_grad(), self._accelerator.autocast():
                moments = first_stage.encode(image * 2 - 1).moments
            # Contiguous: torch 2.13's group norm of a channels-last input crashes in the backward
            # pass under autocast when its own weights are frozen.
            return first_stage.latent(moments.float()).contiguous()

        def make_batch(number: int) -> Batch:
            return {name: encode(image) for name, image in images(number).items()}

        if not table.cached:
            return make_batch
        origin = {
            "data": self._data,
            "seed": seed,
            "batch": table.loop.batch,
            **table.model_dump(include={"crop", "teacher_share"}),
            "weights": _digest(networks, lambda name: name.startswith(_FIRST_STAGE)),
        }
        names = ("high", "low") if stage == "encoder" else ("high",)
        units, folder = dict.fromkeys(names, 1), self._folder / "latents"
        shards = Shards(folder, make_batch, table.cached, origin, units)

        def batch(number: int) -> Batch:
            own = number * self._accelerator.num_processes + self._rank
            if own < table.cached:  # the first time round each is new, and made now
                batch = shards.batch(own)
            else:
                generator = generator_of(seed, own)
                batch = shards.crops(names, table.loop.batch, table.crop // 8, generator)
            return {name: tensor.to(self._device) for name, tensor in batch.items()}

        return batch

    def samples(self, table: CfwSettings, networks: Networks) -> Shards:
        """What the model makes of degraded photographs: the fusion layers have to mend that.

        Batches of `high` and `low`, uint8 (n, 3, H, W), and `latent`, unscaled (n, c, H/8, W/8); a
        unit is a latent pixel. No place is preferred: from details alone the layers would not learn
        to keep skies smooth.
        """
        seed = stream(self._settings.seed, "cfw/pairs")
        pairs = self._pairs(table.crop, table.sampled_batch, seed, candidates=1)
        first_stage = networks.first_stage or networks.autoencoder

        @torch.no_grad()
        def make_batch(number: int) -> Batch:
            generator, images = generator_of(seed, number), pairs.at(number)
            images["low"] = upsample(images["low"])
            with self._accelerator.autocast():
                lr = first_stage.latent(first_stage.encode(images["low"] * 2 - 1).moments)
                noise = (
                    torch.randn(lr.shape, generator=generator).to(lr.device)
                    for _ in range(table.sampling_steps + 1)
                )
                latent = sample_latent(networks, lr, table.sampling_steps, noise)
            return {**_levels(images), "latent": latent}

        origin = {
            "data": self._data,
            "seed": seed,
            **table.model_dump(include={"crop", "sampled_batch", "sampling_steps"}),
            "weights": _digest(networks, lambda name: ".fusion." not in name),
        }
        pixels = networks.config.autoencoder.downscale
        units = {"latent": 1, "high": pixels, "low": pixels}
        shards = Shards(self._folder / "sampled", make_batch, table.sampled, origin, units)
        shards.make(self._accelerator, self._on_progress)
        return shards

    def _pairs(self, crop: int, batch: int, seed: int, candidates: int | None = None) -> Pairs:
        data = self._settings.data
        if candidates is not None:
            data = data.model_copy(update={"candidates": candidates})
        images = read_photographs(data.photographs, crop, data.sizes)
        return Pairs(images, data, crop=crop, batch=batch, seed=seed, device=self._device)


def _levels(images: Batch) -> Batch:
    """In 8 bits."""
    return {name: (image * 255).round().to(torch.uint8) for name, image in images.items()}


def _digest(networks: Networks, of: Callable[[str], bool]) -> str:
    """Of the weights that `of` names."""
    digest = hashlib.sha256()
    for name, tensor in networks.state_dict().items():
        if of(name):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
