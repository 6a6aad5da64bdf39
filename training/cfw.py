"""Last stage: the fusion layers of CFW, on latents that the model itself sampled (section 3.3)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from models.diffusion import DDPM, add_noise
from models.networks.bundle import Networks
from models.networks.fusion import FusionLayer
from training.config import CfwSettings
from training.image_loss import ImageLoss
from training.objective import Batch, ImageObjective
from training.shards import Shards
from training.vae import is_slope

__all__ = ["Cfw", "sampled_batch"]


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
    config = networks.config
    first_stage = networks.first_stage or networks.autoencoder
    lr = first_stage.latent(first_stage.encode(low * 2 - 1).moments)
    stepper = DDPM(steps, config.prediction, config.first_timestep)

    def noise() -> Tensor:
        return torch.randn(lr.shape, generator=generator).to(lr.device)

    begin = noise()
    canvas = add_noise(lr, begin, stepper.timesteps[0]) if config.noised_start else lr
    context = networks.context.expand(len(lr), -1, -1)
    for index, timestep in enumerate(stepper.timesteps):
        predicted = networks.predict(canvas, lr, [timestep] * len(lr), context)
        fresh = noise() if stepper.needs_noise(index) else None
        canvas = stepper.step(index, canvas, predicted, fresh)
    return {
        "high": (high * 255).round().to(torch.uint8),
        "low": (low * 255).round().to(torch.uint8),
        "latent": networks.autoencoder.unscaled(canvas),
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

    def terms(self, made: dict[str, Tensor], batch: Batch, step: int) -> dict[str, Tensor]:
        fusion = self.networks.autoencoder.decoder.fusion
        assert fusion is not None
        if isinstance(fusion, nn.ModuleDict):
            last: nn.Module = cast("FusionLayer", fusion["half_size"]).leave.conv2
        else:
            last = cast("nn.ModuleDict", fusion.layers[-1])["conv"]
        return self.image_terms(made, batch, step, last)
