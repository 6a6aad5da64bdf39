"""First stage: the compact autoencoder, learned from photographs and from the teacher's images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from models.config import CompactConfig
from models.networks.bundle import Networks
from models.networks.compact import ANCHORED, CompactAutoencoder
from training.config import VaeSettings
from training.image_loss import ImageLoss
from training.objective import Batch, ImageObjective

__all__ = ["Vae", "is_slope", "latent_scale"]


class Vae(ImageObjective):
    """The autoencoder but its fusion layers.

    Args:
        images: number of a batch -> (n, 3, H, W) in [0, 1], on the device.
    """

    real = "image"

    def __init__(
        self,
        networks: Networks,
        images: Callable[[int], Tensor],
        settings: VaeSettings,
        loss: ImageLoss,
        seed: int,
    ) -> None:
        super().__init__(networks, loss, seed)
        self._images, self._settings = images, settings

    @staticmethod
    def trainable(name: str) -> bool:
        return name.startswith("autoencoder.") and ".fusion." not in name and not is_slope(name)

    def draw(self, number: int) -> Batch:
        image = self._images(number) * 2 - 1
        config = self.networks.config.autoencoder
        cells = [side // config.downscale for side in image.shape[2:]]
        shape = (len(image), config.latent_channels, *cells)
        noise = torch.randn(shape, generator=self.generator(number)).to(image.device)
        return {"image": image, "noise": self._settings.noise * noise}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        autoencoder = self.networks.autoencoder
        latent = autoencoder.encode(batch["image"]).moments.float()
        out = autoencoder.decode(latent + batch["noise"])
        return {"image": out.float(), "free": latent[:, ANCHORED:]}

    def terms(self, made: dict[str, Tensor], batch: Batch, step: int) -> dict[str, Tensor]:
        """Of the image; the pull of the free channels to zero."""
        autoencoder = self.networks.autoencoder
        assert isinstance(autoencoder, CompactAutoencoder)  # the stage refuses others
        return self.image_terms(made, batch, step, autoencoder.decoder.head.conv_out)

    def further_terms(self, made: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        return {"free": self._settings.free_penalty * made["free"].square().mean()}


def is_slope(name: str) -> bool:
    """Whether the parameter is a slope of the compact decoder's activations.

    They stay as they are: on a processor their gradients take a fifth of a step's time, and there
    are few of them.
    """
    return name.endswith((".activation.weight", ".act.weight"))


@torch.no_grad()
def latent_scale(autoencoder: CompactAutoencoder, image: Tensor) -> CompactConfig:
    """The configuration with which each channel of these images' latents has a deviation of one;
    images (n, 3, H, W) in [0, 1]."""
    deviation = autoencoder.encode(image * 2 - 1).moments.std(dim=(0, 2, 3)).clamp(min=1e-3)
    scale = tuple(round(1 / float(d), 4) for d in deviation)
    return dataclasses.replace(autoencoder.config, latent_scale=scale)
