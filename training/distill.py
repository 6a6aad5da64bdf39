"""Distillation: guidance and decoder learn through a sampler of few steps and the image it ends in.

The paper names fast sampling as what is missing. The prior stays frozen; what guides it
learns that few steps end where another network, or the same one in many steps, ends. The decoder
learns along, because what it reads then is sampled and not encoded.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from models.diffusion import DDPM, add_noise
from models.networks.bundle import Networks
from models.networks.compact import CompactAutoencoder
from training.config import DistillSettings
from training.denoising import Guidance
from training.image_loss import ImageLoss
from training.objective import Batch, ImageObjective
from training.pairs import enlarged
from training.shards import Shards
from training.teacher import taught
from training.vae import Vae

__all__ = ["Distillation"]


class Distillation(ImageObjective):
    """Guidance and decoder but its fusion layers.

    Args:
        shards: of `training.teacher`.
        device: where it runs.
    """

    real = "teacher"

    def __init__(
        self,
        networks: Networks,
        shards: Shards,
        settings: DistillSettings,
        loss: ImageLoss,
        seed: int,
        device: torch.device,
    ) -> None:
        super().__init__(networks, loss, seed)
        self._shards, self._settings, self._device = shards, settings, device

    @staticmethod
    def trainable(name: str) -> bool:
        decoder = name.startswith("autoencoder.decoder.") and Vae.trainable(name)
        return decoder or Guidance.trainable(name)

    def draw(self, number: int) -> Batch:
        s, generator = self._settings, self.generator(number)
        names = ("high", "low", "teacher")
        high, low, teacher = taught(self._shards, names, s.loop.batch, s.crop, generator)
        steps = random.Random(number).choice(s.steps)
        config = self.networks.config.autoencoder
        cells = s.crop // config.downscale
        noise = torch.randn(
            (steps + 1, s.loop.batch, config.latent_channels, cells, cells), generator=generator
        )
        batch = {"high": high, "low": enlarged(low, 4), "teacher": teacher}
        batch = {name: (part * 2 - 1).to(self._device) for name, part in batch.items()}
        return {**batch, "noise": noise.to(self._device)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """As the pipeline samples; gradients go through the last two steps."""
        networks, noise = self.networks, list(batch["noise"])
        steps = len(noise) - 1
        config = networks.config
        stepper = DDPM(steps, config.prediction, config.first_timestep)
        with torch.no_grad():
            lr = networks.autoencoder.latent(networks.autoencoder.encode(batch["low"]).moments)
        context = networks.context.expand(len(lr), -1, -1)
        canvas = add_noise(lr, noise[0], stepper.timesteps[0]) if config.noised_start else lr
        for index, timestep in enumerate(stepper.timesteps):
            # The last of several steps is at t = 0 and changes next to nothing: what it is given
            # has to learn as well.
            with torch.set_grad_enabled(torch.is_grad_enabled() and index >= steps - 2):
                predicted = networks.predict(canvas, lr, [timestep] * len(lr), context).float()
                fresh = noise[index + 1] if stepper.needs_noise(index) else None
                canvas = stepper.step(index, canvas, predicted, fresh)
        image = networks.autoencoder.decode(networks.autoencoder.unscaled(canvas))
        return {"image": image.float()}

    def terms(self, made: dict[str, Tensor], batch: Batch, step: int) -> dict[str, Tensor]:
        """Of the teacher's image, and of the photograph."""
        autoencoder = self.networks.autoencoder
        assert isinstance(autoencoder, CompactAutoencoder)  # the stage refuses others
        return self.image_terms(made, batch, step, autoencoder.decoder.head.conv_out)

    def further_terms(self, made: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        error = (made["image"] - batch["high"]).abs().mean()
        return {"photograph": self._settings.photograph * error}
