"""Prior and guidance: the UNet predicts epsilon or v, without or with the time-aware encoder.

The guidance is the paper's fine-tuning (section 3.1 and 3.2): the prior frozen, encoder and
modulation trained. Epsilon or v, as the weights' configuration says.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.bundle import Networks
from models.networks.unet import ModulatedUNet
from models.schedulers import TRAINING_STEPS, alphas_cumprod
from training.objective import Batch, Objective

__all__ = ["Guidance", "Latents", "Prior", "open_modulation"]

Latents = Callable[[int, torch.Generator], Batch]
"""Number of a batch and its generator -> scaled latents `high` and, for the guidance, `low`, each
(n, c, h, w), on the device."""

_MODULATION = (".modulation.shared.", ".modulation.gamma.", ".modulation.beta.")


def open_modulation(unet: ModulatedUNet) -> None:
    """Makes gamma and beta zero, so that the guidance starts from the prior as it is."""
    for name, parameter in unet.named_parameters():
        if ".modulation.gamma." in name or ".modulation.beta." in name:
            nn.init.zeros_(parameter)


class _Denoising(Objective):
    def __init__(self, networks: Networks, latents: Latents, seed: int) -> None:
        super().__init__(networks, seed)
        self._latents = latents
        self._alphas = torch.from_numpy(alphas_cumprod()).float()

    def draw(self, number: int) -> Batch:
        generator = self.generator(number)
        batch = self._latents(number, generator)
        high = batch["high"]
        n = len(high)
        # One draw from each of n equal stretches of the schedule: less noise in the loss.
        drawn = (torch.arange(n) + torch.rand(n, generator=generator)) / n
        timestep = (drawn * TRAINING_STEPS).long().clamp(max=TRAINING_STEPS - 1)
        a = self._alphas[timestep].view(-1, 1, 1, 1).to(high.device)
        noise = torch.randn(high.shape, generator=generator).to(high.device)
        batch["noisy"] = a.sqrt() * high + (1 - a).sqrt() * noise
        batch["timestep"] = timestep.to(high.device)
        if self.networks.config.prediction == "epsilon":
            batch["target"] = noise
        else:
            batch["target"] = a.sqrt() * noise - (1 - a).sqrt() * high
        return batch

    @abstractmethod
    def features(self, batch: Batch) -> list[Tensor]:
        """The encoder's, one for each level of the UNet."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        noisy = batch["noisy"]
        context = self.networks.context.expand(len(noisy), -1, -1)
        predicted = self.networks.unet(noisy, batch["timestep"], context, self.features(batch))
        return {"predicted": predicted}

    def terms(self, made: dict[str, Tensor], batch: Batch, step: int) -> dict[str, Tensor]:
        """Mean squared error, arXiv 2006.11239, eq. 14, and its like for v."""
        return {"denoising": F.mse_loss(made["predicted"].float(), batch["target"])}


class Prior(_Denoising):
    """The UNet alone: what it consists of without guidance, and the constant context."""

    @staticmethod
    def trainable(name: str) -> bool:
        return name == "context" or (
            name.startswith("unet.") and not any(m in name for m in _MODULATION)
        )

    def features(self, batch: Batch) -> list[Tensor]:
        config, high = self.networks.unet.config, batch["high"]
        n, _, h, w = high.shape
        return [
            high.new_zeros(n, config.feature_width, h >> level, w >> level)
            for level in range(len(config.widths))
        ]


class Guidance(_Denoising):
    """Time-aware encoder and modulation: all that the paper's fine-tuning trains."""

    @staticmethod
    def trainable(name: str) -> bool:
        return name.startswith("encoder.") or ".modulation." in name

    def features(self, batch: Batch) -> list[Tensor]:
        features: list[Tensor] = self.networks.encoder(batch["low"], batch["timestep"])
        return features
