"""What the stages learn from: images, latents, the teacher's pairs, sampled latents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from models.networks.bundle import Networks
from models.schedulers import DDPM, add_noise
from training.config import CfwSettings, DenoisingSettings, MixedStage, RunSettings, StageName
from training.objective import Batch
from training.pairs import Pairs, generator_of, stream, upsample
from training.shards import TEACHER, Shards, teacher_crops, teacher_shards

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
        self._device, self._rank = accelerator.device, accelerator.process_index

    def teacher(self) -> Shards:
        """The teacher's pairs, all of them made."""
        s = self._settings
        assert s.teacher is not None  # the settings refuse that
        shards = teacher_shards(s.teacher, s.data, s.seed, self._folder.parent, self._device)
        shards.make(self._accelerator, self._on_progress)
        return shards

    def images(
        self, table: MixedStage, seed: int, *, low: bool = False
    ) -> Callable[[int], tuple[Tensor, ...]]:
        """Number of a batch -> images (n, 3, H, W) in [0, 1], some the teacher's; with `low` also
        what they are to be restored from, upsampled."""
        pairs = self._pairs(table.crop, table.loop.batch, seed)
        shards = self.teacher() if table.teacher_share else None

        def batch(number: int) -> tuple[Tensor, ...]:
            if shards is None or (number * _GOLDEN) % 1 >= table.teacher_share:
                return pairs.at(number) if low else (pairs.high(number),)
            names = (TEACHER, "low") if low else (TEACHER,)
            generator = generator_of(seed, number)
            crops = teacher_crops(shards, names, table.loop.batch, table.crop, generator)
            if low:
                crops["low"] = upsample(crops["low"])
            return tuple(image.to(self._device) for image in crops.values())

        return batch

    def latents(
        self, stage: StageName, table: DenoisingSettings, networks: Networks
    ) -> Callable[[int], Batch]:
        """Number of a batch -> scaled latents (n, c, h, w) of images, `high`, and for the guidance
        of degraded ones, `low`."""
        seed = stream(self._settings.seed, f"{stage}/pairs", 0 if table.cached else self._rank)
        first_stage = networks.first_stage or networks.autoencoder
        names = ("high", "low") if stage == "encoder" else ("high",)
        images = self.images(table, seed, low="low" in names)

        def encode(image: Tensor) -> Tensor:
            with torch.no_grad(), self._accelerator.autocast():
                moments = first_stage.encode(image * 2 - 1).moments
            # Contiguous: torch 2.13's group norm of a channels-last input crashes in the backward
            # pass under autocast when its own weights are frozen.
            return first_stage.latent(moments.float()).contiguous()

        def make_batch(number: int) -> Batch:
            return {n: encode(i) for n, i in zip(names, images(number), strict=True)}

        if not table.cached:
            return make_batch
        origin = {
            "seed": seed,
            "batch": table.loop.batch,
            **table.model_dump(include={"crop", "teacher_share"}),
            "weights": _digest(networks, lambda name: name.startswith(_FIRST_STAGE)),
        }
        shards = self._shards("latents", make_batch, table.cached, origin)

        def batch(number: int) -> Batch:
            own = number * self._accelerator.num_processes + self._rank
            if own < table.cached:  # the first time round each is new, and made now
                batch = shards.batch(own)
            else:
                units, generator = dict.fromkeys(names, 1), generator_of(seed, own)
                batch = shards.crops(table.loop.batch, units, table.crop // 8, generator)
            return {name: tensor.to(self._device) for name, tensor in batch.items()}

        return batch

    def samples(self, table: CfwSettings, networks: Networks) -> Shards:
        """What the model makes of degraded photographs: the fusion layers have to mend that.

        Batches of `high` and `low`, uint8 (n, 3, H, W), and `latent`, unscaled (n, c, H/8, W/8).
        """
        seed = stream(self._settings.seed, "cfw/pairs")
        pairs = self._pairs(table.crop, table.sampled_batch, seed)
        first_stage = networks.first_stage or networks.autoencoder

        @torch.no_grad()
        def make_batch(number: int) -> Batch:
            generator = generator_of(seed, number)
            high, low = pairs.at(number)
            with self._accelerator.autocast():
                lr = first_stage.latent(first_stage.encode(low * 2 - 1).moments)
                noise = (
                    torch.randn(lr.shape, generator=generator).to(lr.device)
                    for _ in range(table.sampling_steps + 1)
                )
                latent = sample_latent(networks, lr, table.sampling_steps, noise)
            images = {"high": high, "low": low}
            levels = {name: (i * 255).round().to(torch.uint8) for name, i in images.items()}
            return {**levels, "latent": latent}

        origin = {
            "seed": seed,
            **table.model_dump(include={"crop", "sampled_batch", "sampling_steps"}),
            "weights": _digest(networks, lambda name: ".fusion." not in name),
        }
        shards = self._shards("sampled", make_batch, table.sampled, origin)
        shards.make(self._accelerator, self._on_progress)
        return shards

    def _pairs(self, crop: int, batch: int, seed: int) -> Pairs:
        data = self._settings.data
        return Pairs(data, crop=crop, batch=batch, seed=seed, device=self._device)

    def _shards(
        self, name: str, make_batch: Callable[[int], Batch], count: int, origin: dict[str, object]
    ) -> Shards:
        data = self._settings.data.model_dump(mode="json")
        return Shards(self._folder / name, make_batch, count, {"data": data, **origin})


def _digest(networks: Networks, of: Callable[[str], bool]) -> str:
    """Of the weights that `of` names."""
    digest = hashlib.sha256()
    for name, tensor in networks.state_dict().items():
        if of(name):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
