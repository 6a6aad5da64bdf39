"""The adversarial term: a PatchGAN critic with a hinge loss and an adaptive weight.

Critic: pix2pix (arXiv 1611.07004, section 3.2.2), group norm in place of batch norm, so that one
image's judgement does not hang on its neighbours. Adaptive weight: VQGAN (arXiv 2012.09841, eq. 7).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PatchCritic", "adaptive_weight", "critic_loss", "fooling_loss"]


class PatchCritic(nn.Module):
    """Says of overlapping patches of 70 pixels how real they look.

    Args:
        width: channels of the first layer; the last has eight times as many.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        inputs = width
        for factor, stride in ((2, 2), (4, 2), (8, 1)):
            outputs = width * factor
            layers += [
                nn.Conv2d(inputs, outputs, 4, stride, 1, bias=False),
                nn.GroupNorm(min(8, outputs), outputs),
                nn.LeakyReLU(0.2),
            ]
            inputs = outputs
        layers.append(nn.Conv2d(inputs, 1, 4, 1, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        """(n, 3, H, W) in [-1, 1], at least 32 a side -> (n, 1, H/8 - 2, W/8 - 2) scores."""
        out: Tensor = self.layers(image)
        return out


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the critic, from its scores."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def fooling_loss(fake: Tensor) -> Tensor:
    """What the image's maker minimises, from the critic's scores."""
    return -fake.mean()


def adaptive_weight(rest: Tensor, fooling: Tensor, last: Sequence[Tensor]) -> Tensor:
    """Weight at which both terms move the last trained layer equally far: no gradient through it.

    Args:
        rest: the other terms, scalar.
        fooling: the adversarial term, scalar.
        last: parameters of that layer.
    """
    norms = [
        torch.cat([g.flatten() for g in torch.autograd.grad(term, last, retain_graph=True)]).norm()
        for term in (rest, fooling)
    ]
    weight: Tensor = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
    return weight
