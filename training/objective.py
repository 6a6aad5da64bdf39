"""What a stage learns, as the trainer sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from models.networks.bundle import Networks
from models.networks.compact import CompactAutoencoder
from training.image_loss import ImageLoss, PatchCritic, critic_loss

__all__ = ["Batch", "ImageObjective", "Objective"]

Batch = dict[str, Tensor]


class Objective(nn.Module, ABC):
    """Networks with what is computed of them in one stage.

    `forward` is all that learns: the trainer wraps it for several processes.

    Args:
        networks: some of their parameters learn, the others stay bit for bit as they are.
        seed: of this process's data.
    """

    def __init__(self, networks: Networks, seed: int) -> None:
        super().__init__()
        self.networks = networks
        self.seed = seed

    @staticmethod
    @abstractmethod
    def trainable(name: str) -> bool:
        """Whether the parameter of the networks with this name learns."""

    @abstractmethod
    def draw(self, number: int) -> Batch:
        """The batch of this number: it follows from seed and number alone, so that a resumed run
        sees what an uninterrupted one sees."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """What the networks make of a batch."""

    @abstractmethod
    def terms(self, made: dict[str, Tensor], batch: Batch, step: int) -> dict[str, Tensor]:
        """Weighted scalars by name; their sum is what is minimised."""

    def generator(self, number: int) -> torch.Generator:
        """On the CPU, of this batch."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + number)


class ImageObjective(Objective):
    """One whose networks make images, which a critic may judge.

    `forward` gives the image as `image`, (n, 3, H, W) in [-1, 1].

    Args:
        loss: compares images, with or without a critic.
    """

    real: str
    """Of a batch: what `image` is to become."""

    def __init__(self, networks: Networks, loss: ImageLoss, seed: int) -> None:
        super().__init__(networks, seed)
        self._loss = loss

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

    def terms(self, made: dict[str, Tensor], batch: Batch, step: int) -> dict[str, Tensor]:
        """Those of the image, and what a stage adds."""
        terms = self._loss.terms(made["image"], batch[self.real], step)
        terms.update(self.further_terms(made, batch))
        if self.wants_critic(step):
            rest = torch.stack(list(terms.values())).sum()
            terms["adversarial"] = self._loss.adversarial(made["image"], rest, self.last_layer)
        return terms

    def further_terms(self, made: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Those that do not compare images."""
        return {}

    def critic_terms(self, critic: nn.Module, made: dict[str, Tensor], batch: Batch) -> Tensor:
        """What the critic minimises.

        Args:
            critic: `self.critic`, as the trainer wrapped it.
        """
        scores = critic(torch.cat([batch[self.real], made["image"].detach()]))
        real, fake = scores.float().chunk(2)
        return critic_loss(real, fake)
