"""The stages that learn from sampled latents: `distill` through the sampler, `cfw` after it.

The paper names fast sampling as what is missing. In `distill` the prior stays frozen; what guides
it learns that few steps end where another network, or the same one in many steps, ends. The decoder
learns along, because what it reads then is sampled and not encoded. `cfw` is the paper's last stage
(section 3.3).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from models.networks.autoencoder import FusionLayer
from models.networks.bundle import Networks
from models.schedulers import DDPM, add_noise
from training.config import CfwSettings, DistillSettings
from training.denoising import Guidance
from training.image_loss import ImageLoss
from training.objective import Batch, ImageObjective
from training.pairs import enlarged
from training.shards import Shards, taught
from training.vae import Vae, is_slope

__all__ = ["Cfw", "Distillation", "sampled_batch"]


def _sampled_latent(
    networks: Networks, lr: Tensor, steps: int, noise: Iterator[Tensor], learning: int = 0
) -> Tensor:
    """What DDPM ends in, each image one tile, as the pipeline samples; unscaled.

    Args:
        lr: latents of the degraded images, (n, c, h, w).
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
            predicted = networks.predict(canvas, lr, [timestep] * len(lr), context).float()
            fresh = next(noise) if scheduler.needs_noise(index) else None
            canvas = scheduler.step(index, canvas, predicted, fresh)
    return networks.autoencoder.unscale(canvas)


class Distillation(ImageObjective):
    """Guidance and decoder but its fusion layers.

    Args:
        shards: of `training.shards`.
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
        autoencoder, noise = self.networks.autoencoder, batch["noise"]
        with torch.no_grad():
            lr = autoencoder.latent(autoencoder.encode(batch["low"]).moments)
        # The last of several steps is at t = 0 and changes next to nothing: what it is given has
        # to learn as well.
        latent = _sampled_latent(self.networks, lr, len(noise) - 1, iter(noise), learning=2)
        image = autoencoder.decode(latent)
        return {"image": image.float()}

    def further_terms(self, made: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        error = (made["image"] - batch["high"]).abs().mean()
        return {"photograph": self._settings.photograph * error}


@torch.no_grad()
def sampled_batch(
    networks: Networks, pair: tuple[Tensor, Tensor], *, steps: int, generator: torch.Generator
) -> Batch:
    """Degraded images through the sampler as in use, each image one tile.

    Args:
        networks: with their guidance trained.
        pair: photographs and their degraded selves, (n, 3, H, W) in [0, 1].
        steps: of DDPM.
        generator: of the noise, on the CPU.

    Returns:
        `high` and `low`, uint8 (n, 3, H, W), and `latent`, unscaled (n, c, H/8, W/8).
    """
    high, low = pair
    first_stage = networks.first_stage or networks.autoencoder
    lr = first_stage.latent(first_stage.encode(low * 2 - 1).moments)
    noise = (torch.randn(lr.shape, generator=generator).to(lr.device) for _ in range(steps + 1))
    return {
        "high": (high * 255).round().to(torch.uint8),
        "low": (low * 255).round().to(torch.uint8),
        "latent": _sampled_latent(networks, lr, steps, noise),
    }


class Cfw(ImageObjective):
    """Only the fusion layers learn, at w = 1; encoder and decoder stay the first stage's.

    Args:
        sampled: batches of `sampled_batch`.
        device: where it runs.
    """

    real = "high"

    def __init__(
        self,
        networks: Networks,
        sampled: Shards,
        settings: CfwSettings,
        loss: ImageLoss,
        seed: int,
        device: torch.device,
    ) -> None:
        super().__init__(networks, loss, seed)
        self._sampled, self._settings = sampled, settings
        self._device = device

    @staticmethod
    def trainable(name: str) -> bool:
        return ".fusion." in name and not is_slope(name)

    def draw(self, number: int) -> Batch:
        generator = self.generator(number)
        picked = self._sampled.pick(self._settings.loop.batch, generator)
        side, cell = self._settings.crop_cells, self.networks.config.autoencoder.downscale
        cells = picked[0]["latent"].shape[-1]
        corners = torch.randint(cells - side + 1, (len(picked), 2), generator=generator).tolist()
        cut: dict[str, list[Tensor]] = {"high": [], "low": [], "latent": []}
        for entry, (y, x) in zip(picked, corners, strict=True):
            for name, parts in cut.items():
                unit = 1 if name == "latent" else cell
                rows, columns = (slice(unit * at, unit * (at + side)) for at in (y, x))
                parts.append(entry[name][:, rows, columns])
        batch = {name: torch.stack(parts).to(self._device) for name, parts in cut.items()}
        for name in ("high", "low"):
            batch[name] = batch[name].float() / 127.5 - 1
        return batch

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        autoencoder = self.networks.autoencoder
        with torch.no_grad():
            features = autoencoder.encode(batch["low"]).features
        fidelity = torch.ones((), device=self._device)
        return {"image": autoencoder.decode(batch["latent"], features, fidelity).float()}

    @property
    def last_layer(self) -> nn.Module:
        fusion = self.networks.autoencoder.decoder.fusion
        assert fusion is not None
        if isinstance(fusion, nn.ModuleDict):
            return cast("FusionLayer", fusion["half_size"]).leave.conv2
        return cast("nn.ModuleDict", fusion.layers[-1])["conv"]
