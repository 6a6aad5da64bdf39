"""What an image that a stage makes is worth: pixel, perceptual and adversarial terms."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.autoencoder import Autoencoder
from models.training.config import ImageLossSettings
from models.training.critic import PatchCritic, adaptive_weight, fooling_loss
from models.training.perceptual import Perceptual, autoencoder_distance, vgg_distance

__all__ = ["ImageLoss", "gradient_loss", "hue_loss"]


def gradient_loss(image: Tensor, target: Tensor) -> Tensor:
    """L1 of horizontal and vertical differences at three sizes: keeps edges from smearing."""
    total = image.new_zeros(())
    for _ in range(3):
        for dim in (2, 3):
            total = total + (image.diff(dim=dim) - target.diff(dim=dim)).abs().mean()
        image, target = F.avg_pool2d(image, 2), F.avg_pool2d(target, 2)
    return total


def hue_loss(error: Tensor) -> Tensor:
    """Mean absolute error of what the channels (dimension 1) do not share."""
    return (error - error.mean(dim=1, keepdim=True)).abs().mean()


class ImageLoss:
    """The weighted terms of one stage.

    Args:
        settings: the weights.
        autoencoder: its frozen encoder is the default perceptual network.
        seed: of the critic's random start.
        device: where all of it runs.
    """

    def __init__(
        self,
        settings: ImageLossSettings,
        autoencoder: Autoencoder,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.settings = settings
        self._perceptual: Perceptual | None = None
        if settings.perceptual and settings.perceptual_network is not None:
            self._perceptual = vgg_distance(
                settings.perceptual_network, settings.perceptual_heads, device
            )
        elif settings.perceptual:
            self._perceptual = autoencoder_distance(autoencoder)
        self.critic: PatchCritic | None = None
        if settings.adversarial:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.critic = PatchCritic(settings.critic_width).to(device)

    def terms(self, image: Tensor, target: Tensor) -> dict[str, Tensor]:
        """All but the adversarial term, weighted; images (n, 3, H, W) in [-1, 1]."""
        s = self.settings
        error = image - target
        terms = {}
        if s.l1:
            terms["l1"] = s.l1 * error.abs().mean()
        if s.hue:
            terms["hue"] = s.hue * hue_loss(error)
        if s.gradient:
            terms["gradient"] = s.gradient * gradient_loss(image, target)
        if self._perceptual is not None:
            terms["perceptual"] = s.perceptual * self._perceptual(image, target)
        return terms

    def adversarial(self, image: Tensor, rest: Tensor, last: nn.Module) -> Tensor:
        """The weighted adversarial term.

        Args:
            image: (n, 3, H, W) in [-1, 1].
            rest: sum of the other terms.
            last: the last layer that learns, for the adaptive weight.
        """
        critic = self.critic
        assert critic is not None  # the caller asks only where there is one
        critic.requires_grad_(False)
        fooling = fooling_loss(critic(image))
        critic.requires_grad_(True)
        weight = adaptive_weight(rest, fooling, list(last.parameters()))
        return self.settings.adversarial * weight * fooling
