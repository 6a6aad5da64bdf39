"""What a stage learns, as the trainer sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from models.networks.bundle import Networks
from models.training.critic import PatchCritic

__all__ = ["Batch", "Objective"]

Batch = dict[str, Tensor]


class Objective(nn.Module, ABC):
    """Networks with what is computed of them in one stage.

    `forward` is all that learns: the trainer wraps it for several processes. The rest runs outside.

    Args:
        networks: some of their parameters learn, the others stay bit for bit as they are.
        seed: of this process's data.
    """

    critic: PatchCritic | None = None

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

    def critic_terms(self, critic: nn.Module, made: dict[str, Tensor], batch: Batch) -> Tensor:
        """What the critic minimises, where there is one.

        Args:
            critic: `self.critic`, as the trainer wrapped it.
        """
        raise NotImplementedError

    def wants_critic(self, step: int) -> bool:
        """Whether the critic has joined by this step."""
        return False

    def generator(self, number: int) -> torch.Generator:
        """On the CPU, of this batch."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + number)
