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
from training.objective import Batch, Latents
from training.pairs import Pairs, stream, upsample
from training.shards import TEACHER, Shards, crop_alike, teacher_shards

# Spreads what is drawn a share of the time evenly over the numbers of the batches.
_GOLDEN = (5**0.5 - 1) / 2
_FIRST_STAGE = ("autoencoder.encoder.", "autoencoder.quant_conv.", "first_stage.")


def sample_latent(
    networks: Networks, lr: Tensor, steps: int, noise: Iterator[Tensor], learning: int = 0
) -> Tensor:
    """What DDPM ends in, each image one tile, as the pipeline samples; unscaled.

    Args:
        networks: with their guidance trained.
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
    """Of one stage.

    Args:
        settings: of the run.
        folder: of the stage; what is made once lies in it, and the teacher's pairs beside it.
        accelerator: of the stage.
        on_progress: hears what is being made.
    """

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
        return self._make(
            teacher_shards(s.teacher, s.data, s.seed, self._folder.parent, self._device)
        )

    def images(self, table: MixedStage, seed: int) -> Callable[[int], Tensor]:
        """Number of a batch -> photographs, or what the teacher made of them."""
        batch = self._mix(table, seed, low=False)
        return lambda number: batch(number)[0]

    def _mix(
        self, table: MixedStage, seed: int, *, low: bool
    ) -> Callable[[int], tuple[Tensor, ...]]:
        """Number of a batch -> images, some the teacher's; with `low` also what they are to be
        restored from, upsampled."""
        pairs = self._pairs(table.crop, table.loop.batch, seed)
        shards = self.teacher() if table.teacher_share else None
        names = (TEACHER, "low") if low else (TEACHER,)

        def batch(number: int) -> tuple[Tensor, ...]:
            if shards is None or (number * _GOLDEN) % 1 >= table.teacher_share:
                return pairs.at(number) if low else (pairs.high(number),)
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            image, *lows = crop_alike(shards, names, table.loop.batch, table.crop, generator)
            lows = [upsample(part, self._settings.data.scale) for part in lows]
            return tuple(part.to(self._device) for part in (image, *lows))

        return batch

    def latents(self, stage: StageName, table: DenoisingSettings, networks: Networks) -> Latents:
        """Latents of images and, for the guidance, of degraded photographs."""
        seed = stream(self._settings.seed, f"{stage}/pairs", 0 if table.cached else self._rank)
        first_stage = networks.first_stage or networks.autoencoder

        def encode(image: Tensor) -> Tensor:
            with torch.no_grad(), self._accelerator.autocast():
                moments = first_stage.encode(image * 2 - 1).moments
            # Contiguous: torch 2.13's group norm of a channels-last input crashes in the backward
            # pass under autocast when its own weights are frozen.
            return first_stage.latent(moments.float()).contiguous()

        images = self._mix(table, seed, low=stage == "encoder")

        def make_batch(number: int) -> Batch:
            return {n: encode(i) for n, i in zip(("high", "low"), images(number), strict=False)}

        if not table.cached:
            return lambda number, generator: make_batch(number)
        origin = self._origin(
            networks,
            lambda name: name.startswith(_FIRST_STAGE),
            crop=table.crop,
            batch=table.loop.batch,
            seed=seed,
            teacher_share=table.teacher_share,
        )
        shards = Shards(self._folder / "latents", make_batch, table.cached, origin)

        def batch(number: int, generator: torch.Generator) -> Batch:
            own = number * self._accelerator.num_processes + self._rank
            if own < table.cached:  # the first time round each is new, and made now
                return {k: v.to(self._device) for k, v in shards.batch(own).items()}
            entries = shards.pick(table.loop.batch, generator)
            return {k: torch.stack([e[k] for e in entries]).to(self._device) for k in entries[0]}

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
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
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

        origin = self._origin(
            networks,
            lambda name: ".fusion." not in name,
            crop=table.crop,
            batch=table.sampled_batch,
            seed=seed,
            steps=table.sampling_steps,
        )
        return self._make(Shards(self._folder / "sampled", make_batch, table.sampled, origin))

    def _pairs(self, crop: int, batch: int, seed: int) -> Pairs:
        data = self._settings.data
        return Pairs(data, crop=crop, batch=batch, seed=seed, device=self._device)

    def _make(self, shards: Shards) -> Shards:
        """Each process makes its share of what is missing, and waits for the others."""
        processes = self._accelerator.num_processes
        shards.make(self._on_progress, rank=self._rank, processes=processes)
        self._accelerator.wait_for_everyone()
        return shards

    def _origin(
        self, networks: Networks, of: Callable[[str], bool], **values: object
    ) -> dict[str, object]:
        """What the tensors are made from: `values`, the data, and the weights that `of` names."""
        digest = hashlib.sha256()
        for name, tensor in networks.state_dict().items():
            if of(name):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        data = self._settings.data.model_dump(mode="json")
        return {"data": data, "weights": digest.hexdigest(), **values}
