"""What a stage learns, as the trainer sees it; the stages of the diffusion: prior and guidance.

The guidance is the paper's fine-tuning (section 3.1 and 3.2): the prior frozen, encoder and
modulation trained. The UNet predicts epsilon or v, as the weights' configuration says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.bundle import Networks
from models.networks.compact import CompactAutoencoder
from models.schedulers import TRAINING_STEPS, alphas_cumprod
from training.image_loss import ImageLoss, PatchCritic, critic_loss

Batch = dict[str, Tensor]
Latents = Callable[[int, torch.Generator], Batch]
"""Number of a batch and its generator -> scaled latents `high` and, for the guidance, `low`, each
(n, c, h, w), on the device."""

Source = TypeVar("Source")
Settings = TypeVar("Settings")

_MODULATION = (".modulation.shared.", ".modulation.gamma.", ".modulation.beta.")


class Objective(nn.Module, ABC):
    """Networks with what is computed of them in one stage.

    `forward` is all that learns: the trainer wraps it for several processes.

    Args:
        networks: some of their parameters learn, the others stay bit for bit as they are.
        seed: of this process's data.
    """

    def __init__(self, networks: Networks, seed: int) -> None:
        super().__init__()
        self.networks, self.seed = networks, seed

    @staticmethod
    @abstractmethod
    def trainable(name: str) -> bool:
        """Whether the parameter of the networks with this name learns."""

    @abstractmethod
    def draw(self, number: int) -> Batch:
        """The batch of this number: it follows from seed and number alone, so that a resumed run
        sees what an uninterrupted one sees."""

    @abstractmethod
    def forward(self, batch: Batch) -> Batch:
        """What the networks make of a batch."""

    @abstractmethod
    def terms(self, outputs: Batch, batch: Batch, step: int) -> dict[str, Tensor]:
        """Weighted scalars by name; their sum is what is minimised."""

    def generator(self, number: int) -> torch.Generator:
        """On the CPU, of this batch."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + number)


class Prior(Objective):
    """The UNet alone: what it consists of without guidance, and the constant context."""

    def __init__(self, networks: Networks, latents: Latents, seed: int) -> None:
        super().__init__(networks, seed)
        self._latents = latents
        self._alphas = torch.from_numpy(alphas_cumprod()).float()

    @staticmethod
    def trainable(name: str) -> bool:
        return name == "context" or (
            name.startswith("unet.") and not any(m in name for m in _MODULATION)
        )

    def draw(self, number: int) -> Batch:
        generator = self.generator(number)
        batch = self._latents(number, generator)
        high = batch["high"]
        n = len(high)
        # One draw from each of n equal stretches of the schedule: less noise in the loss.
        places = (torch.arange(n) + torch.rand(n, generator=generator)) / n
        timestep = (places * TRAINING_STEPS).long().clamp(max=TRAINING_STEPS - 1)
        a = self._alphas[timestep].view(-1, 1, 1, 1).to(high.device)
        noise = torch.randn(high.shape, generator=generator).to(high.device)
        batch["noisy"] = a.sqrt() * high + (1 - a).sqrt() * noise
        batch["timestep"] = timestep.to(high.device)
        if self.networks.config.prediction == "epsilon":
            batch["target"] = noise
        else:
            batch["target"] = a.sqrt() * noise - (1 - a).sqrt() * high
        return batch

    def features(self, batch: Batch) -> list[Tensor]:
        """The encoder's, one for each level of the UNet."""
        config, high = self.networks.unet.config, batch["high"]
        n, _, h, w = high.shape
        return [
            high.new_zeros(n, config.feature_width, h >> level, w >> level)
            for level in range(len(config.widths))
        ]

    def forward(self, batch: Batch) -> Batch:
        noisy = batch["noisy"]
        context = self.networks.context.expand(len(noisy), -1, -1)
        features = self.features(batch)
        return {"prediction": self.networks.unet(noisy, batch["timestep"], context, features)}

    def terms(self, outputs: Batch, batch: Batch, step: int) -> dict[str, Tensor]:
        """Mean squared error, arXiv 2006.11239, eq. 14, and its like for v."""
        return {"denoising": F.mse_loss(outputs["prediction"].float(), batch["target"])}


class Guidance(Prior):
    """Time-aware encoder and modulation: all that the paper's fine-tuning trains."""

    @staticmethod
    def trainable(name: str) -> bool:
        return name.startswith("encoder.") or ".modulation." in name

    def features(self, batch: Batch) -> list[Tensor]:
        features: list[Tensor] = self.networks.encoder(batch["low"], batch["timestep"])
        return features


class ImageObjective(Objective, Generic[Source, Settings]):
    """One whose networks make images, which a critic may judge.

    `forward` gives the image as `image`, (n, 3, H, W) in [-1, 1].

    Args:
        source: what `draw` makes batches of.
        settings: the stage's table.
        loss: compares images, with or without a critic.
    """

    target: str
    """Of a batch: what `image` is to become."""

    def __init__(
        self, networks: Networks, source: Source, settings: Settings, loss: ImageLoss, seed: int
    ) -> None:
        super().__init__(networks, seed)
        self._source, self._settings, self._loss = source, settings, loss
        self._device = networks.context.device

    @property
    def critic(self) -> PatchCritic | None:
        """No part of what this module trains."""
        return self._loss.critic

    @property
    def critic_learning_rate(self) -> float | None:
        """None: the loop's."""
        return self._loss.settings.critic_learning_rate

    def wants_critic(self, step: int) -> bool:
        """Whether there is a critic, and it has joined by this step."""
        return self.critic is not None and step >= self._loss.settings.adversarial_after

    @property
    def last_layer(self) -> nn.Module:
        """The layer that learns by whose gradients the critic's weight is set."""
        autoencoder = self.networks.autoencoder
        assert isinstance(autoencoder, CompactAutoencoder)  # the stages refuse others
        return autoencoder.decoder.head.conv_out

    def terms(self, outputs: Batch, batch: Batch, step: int) -> dict[str, Tensor]:
        """Those of the image, and what a stage adds."""
        terms = self._loss.terms(outputs["image"], batch[self.target], step)
        terms.update(self.more_terms(outputs, batch))
        if self.wants_critic(step):
            rest = torch.stack(list(terms.values())).sum()
            terms["adversarial"] = self._loss.adversarial(outputs["image"], rest, self.last_layer)
        return terms

    def more_terms(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        """Those that do not compare image and target."""
        return {}

    def critic_terms(self, critic: nn.Module, outputs: Batch, batch: Batch) -> Tensor:
        """What the critic minimises; `critic` is `self.critic`, as the trainer wrapped it."""
        scores = critic(torch.cat([batch[self.target], outputs["image"].detach()]))
        real, fake = scores.float().chunk(2)
        return critic_loss(real, fake)
