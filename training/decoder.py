"""The decoder before distillation: Real-ESRGAN's compact network, ended by convolutions.

The first stage teaches to return an image, blurred where it was blurred. Sharp edges are
what the compact network brings; its last layer interleaves channels and leaves a lattice, so the
decoder's head learns to end as that layer does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.networks.bundle import Networks
from models.networks.compact import ANCHORED, CompactAutoencoder, anchored, quarter
from training.image_loss import ImageLoss
from training.objective import Batch, ImageObjective
from training.realesrgan import CompactNet

__all__ = ["Decoder"]


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
        latent = anchored(small * 2 - 1)
        free = self.networks.config.autoencoder.latent_channels - ANCHORED
        empty = latent.new_zeros((len(latent), free, *latent.shape[2:]))
        return {"latent": torch.cat([latent, empty], dim=1), "target": target}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"image": self.networks.autoencoder.decode(batch["latent"]).float()}

    def terms(self, made: dict[str, Tensor], batch: Batch, step: int) -> dict[str, Tensor]:
        """Of the compact network's image."""
        autoencoder = self.networks.autoencoder
        assert isinstance(autoencoder, CompactAutoencoder)  # the stage refuses others
        return self.image_terms(made, batch, step, autoencoder.decoder.head.conv_out)
