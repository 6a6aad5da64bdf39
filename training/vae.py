"""The compact autoencoder's own stages: `vae`, all but its fusion layers, and `decoder`, its head.

`vae` learns from photographs and from the teacher's images to return an image, blurred where it was
blurred. `decoder` then starts from Real-ESRGAN's compact network, which brings sharp edges; its
last layer interleaves channels and leaves a lattice, so the head learns to end as it does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from models.networks.bundle import Networks
from models.networks.compact import HAAR_CHANNELS, CompactAutoencoder, haar, quarter
from training.config import VaeSettings
from training.image_loss import ImageLoss
from training.objective import Batch, ImageObjective
from training.realesrgan import CompactNet

__all__ = ["Decoder", "Vae", "is_slope"]

_SCALED_BY = 8  # batches of images


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
        return {"image": out.float(), "free": latent[:, HAAR_CHANNELS:]}

    def further_terms(self, made: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The pull of the free channels to zero."""
        return {"free": self._settings.free_penalty * made["free"].square().mean()}

    @torch.no_grad()
    def rescale(self) -> None:
        """Scales latents to a deviation of one, of images that do not change with the step."""
        networks, autoencoder = self.networks, self.networks.autoencoder
        assert isinstance(autoencoder, CompactAutoencoder)  # the stage refuses others
        images = torch.cat([self.draw(number)["image"] for number in range(_SCALED_BY)])
        deviation = autoencoder.encode(images).moments.std(dim=(0, 2, 3)).clamp(min=1e-3)
        scale = tuple(round(1 / float(d), 4) for d in deviation)
        autoencoder.config = dataclasses.replace(autoencoder.config, latent_scale=scale)
        networks.config = dataclasses.replace(networks.config, autoencoder=autoencoder.config)


def is_slope(name: str) -> bool:
    """Whether the parameter is a slope of the compact decoder's activations.

    They stay as they are: on a processor their gradients take a fifth of a step's time, and there
    are few of them.
    """
    return name.endswith((".activation.weight", ".act.weight"))


class Decoder(ImageObjective):
    """The decoder's head, in which the compact network's last layer ends.

    Args:
        network: the compact one; the decoder's layers are its own.
        images: number of a batch -> (n, 3, H, W) in [0, 1], on the device.
    """

    real = "target"

    def __init__(
        self,
        networks: Networks,
        network: CompactNet,
        images: Callable[[int], Tensor],
        loss: ImageLoss,
        seed: int,
    ) -> None:
        super().__init__(networks, loss, seed)
        # In a list: no part of what is saved.
        self._network, self._images = [network], images

    @staticmethod
    def trainable(name: str) -> bool:
        return name.startswith("autoencoder.decoder.head.")

    def draw(self, number: int) -> Batch:
        small = quarter(self._images(number)).clamp(0, 1)
        with torch.no_grad():
            target = self._network[0](small) * 2 - 1
        latent = haar(small * 2 - 1)
        free = self.networks.config.autoencoder.latent_channels - HAAR_CHANNELS
        empty = latent.new_zeros((len(latent), free, *latent.shape[2:]))
        return {"latent": torch.cat([latent, empty], dim=1), "target": target}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"image": self.networks.autoencoder.decode(batch["latent"]).float()}
