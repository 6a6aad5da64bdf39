"""Feature modulation with one convolution a block, and one more for all blocks of a level.

With n the normalised map before its affine (w, b), the block computes

    (w n + b) (1 + gamma) + beta  =  n (w + w gamma) + (b + b gamma + beta)

and both brackets are convolutions of the same activations, so they are one convolution. What these
activations come from, the block's first convolution, reads the level's feature, as those of all
blocks of the level do: they are one convolution too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.fusing.weights import convolution, wide
from models.networks.bundle import Networks
from models.networks.unet import FeatureModulation, ModulatedResnetBlock2D, ModulatedUNet

__all__ = ["FusedModulation", "JoinedConv", "fuse_modulation"]


class JoinedConv(nn.Module):
    """The first convolutions of all blocks of one level, and the ReLU after them."""

    def __init__(self, convs: list[nn.Conv2d]) -> None:
        super().__init__()
        self.conv = convolution(
            torch.cat([wide(c.weight) for c in convs]),
            torch.cat([wide(c.bias) for c in convs]),
            convs[0].weight,
        )

    def forward(self, feature: Tensor) -> Tensor:
        """(n, feature_width, h, w) -> (n, blocks * hidden, h, w)."""
        out: Tensor = F.relu(self.conv(feature))
        return out


class FusedModulation(nn.Module):
    """Scales and shifts by one convolution of the block's share of the level's activations.

    Args:
        modulation: the layers, but for the first convolution.
        start: where the block's channels begin in the joined ones.
    """

    def __init__(self, modulation: FeatureModulation, start: int) -> None:
        super().__init__()
        norm, gamma, beta = modulation.norm, modulation.gamma, modulation.beta
        self.groups, self.eps = norm.num_groups, norm.eps
        self.start, self.stop = start, start + gamma.in_channels
        w, b = wide(norm.weight), wide(norm.bias)
        kernel_w, kernel_b = w[:, None, None, None], b[:, None, None, None]
        weights = [
            kernel_w * wide(gamma.weight),
            kernel_b * wide(gamma.weight) + wide(beta.weight),
        ]
        biases = [w + w * wide(gamma.bias), b + b * wide(gamma.bias) + wide(beta.bias)]
        self.conv = convolution(torch.cat(weights), torch.cat(biases), gamma.weight)
        """hidden to 2 * channels: the scale's, then the shift's."""

    def forward(self, hidden: Tensor, joined: Tensor) -> Tensor:
        """hidden (n, channels, h, w), joined (n, blocks * hidden, h, w) -> like hidden."""
        activations = joined[:, self.start : self.stop]
        scale, shift = self.conv(activations).chunk(2, dim=1)
        out: Tensor = F.group_norm(hidden, self.groups, eps=self.eps) * scale + shift
        return out


@torch.inference_mode(False)
@torch.no_grad()
def fuse_modulation(networks: Networks) -> None:
    """All residual blocks of the UNet."""
    unet = networks.unet
    if unet.joined is not None:
        return
    joined = nn.ModuleList()
    for blocks in _levels(unet):
        convs = []
        start = 0
        for block in blocks:
            modulation = block.modulation
            assert isinstance(modulation, FeatureModulation)
            block.register_module("modulation", FusedModulation(modulation, start))
            convs.append(modulation.shared)
            start += modulation.shared.out_channels
        joined.append(JoinedConv(convs))
    unet.joined = joined


def _levels(unet: ModulatedUNet) -> list[list[ModulatedResnetBlock2D]]:
    """The blocks that read each level's feature, finest level first."""
    down, up = list(unet.down_blocks), list(reversed(unet.up_blocks))
    parts: list[list[nn.Module]] = [[a, b] for a, b in zip(down, up, strict=True)]
    parts[-1].append(unet.mid_block)
    return [
        [m for part in level for m in part.modules() if isinstance(m, ModulatedResnetBlock2D)]
        for level in parts
    ]
