"""First stage: the KL autoencoder, trained on plain photographs (arXiv 2112.10752, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from models.networks.autoencoder import Autoencoder
from models.networks.bundle import Networks
from models.training.color_path import ANCHOR_SCALE
from models.training.config import VaeSettings
from models.training.image_loss import ImageLoss, hue_loss
from models.training.objective import Batch, ImageObjective

__all__ = ["Vae", "latent_deviation"]


class Vae(ImageObjective):
    """The autoencoder but its fusion layers.

    Args:
        photographs: number of a batch -> (n, 3, H, W) in [0, 1], on the device.
    """

    real = "image"

    def __init__(
        self,
        networks: Networks,
        photographs: Callable[[int], Tensor],
        settings: VaeSettings,
        loss: ImageLoss,
        seed: int,
    ) -> None:
        super().__init__(networks, loss, seed)
        self._photographs, self._settings = photographs, settings

    @staticmethod
    def trainable(name: str) -> bool:
        return name.startswith("autoencoder.") and ".fusion." not in name

    def draw(self, number: int) -> Batch:
        image = self._photographs(number) * 2 - 1
        config = self.networks.config.autoencoder
        cells = [side // config.downscale for side in image.shape[2:]]
        shape = (len(image), config.latent_channels, *cells)
        noise = torch.randn(shape, generator=self.generator(number)).to(image.device)
        return {"image": image, "noise": noise}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        autoencoder = self.networks.autoencoder
        mean, log_variance = autoencoder.encode(batch["image"]).moments.float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        out = autoencoder.decode(mean + (0.5 * log_variance).exp() * batch["noise"])
        return {"image": out.float(), "mean": mean, "log_variance": log_variance}

    def terms(self, made: dict[str, Tensor], batch: Batch, step: int) -> dict[str, Tensor]:
        """Of the image; the pull of the posterior to the standard normal; the anchored colours."""
        return self.image_terms(made, batch, step, self.networks.autoencoder.decoder.conv_out)

    def further_terms(self, made: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        mean, log_variance = made["mean"], made["log_variance"]
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        terms = {"kl": self._settings.kl * divergence.sum(dim=(1, 2, 3)).mean()}
        if self._settings.color_anchor:
            side = self.networks.config.autoencoder.downscale
            error = mean[:, -3:] - ANCHOR_SCALE * F.avg_pool2d(batch["image"], side)
            anchor = error.abs().mean() + 4 * hue_loss(error)
            terms["anchor"] = self._settings.color_anchor * anchor
        return terms


@torch.no_grad()
def latent_deviation(autoencoder: Autoencoder, image: Tensor) -> float:
    """Standard deviation of unscaled latents; its inverse is the scaling factor."""
    mean = autoencoder.encode(image * 2 - 1).moments.chunk(2, dim=1)[0]
    return float(mean.std())
