"""Controllable feature wrapping: fuses encoder and decoder features (paper, section 3.3, eq. 5).

Residual-in-residual dense blocks are those of ESRGAN (arXiv 1809.00219, section 3.1).
"""

from __future__ import annotations

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["RESIDUAL_SCALE", "DenseBlock", "FusionLayer", "ResidualInResidual"]

RESIDUAL_SCALE = 0.2


class DenseBlock(nn.Module):
    """Five 3x3 convolutions, each reading all that came before; residual scaled by 0.2."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(width + i * growth, growth if i < 4 else width, 3, padding=1)
            for i in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in list(self.convs)[:-1]:
            seen = torch.cat([seen, F.leaky_relu(conv(seen), 0.2)], dim=1)
        out: Tensor = x + RESIDUAL_SCALE * self.convs[-1](seen)
        return out


class ResidualInResidual(nn.Module):
    """Three dense blocks in a residual that is scaled by 0.2 again."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DenseBlock(width, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + RESIDUAL_SCALE * self.blocks(x)
        return out


class FusionLayer(nn.Module):
    """What the decoder's feature lacks, told from the encoder's feature of the same size."""

    def __init__(self, width: int, growth: int, blocks: int, groups: int) -> None:
        super().__init__()
        self.enter = self._resnet(2 * width, width, groups)
        self.dense = nn.Sequential(*(ResidualInResidual(width, growth) for _ in range(blocks)))
        self.leave = self._resnet(width, width, groups)

    @staticmethod
    def _resnet(inputs: int, width: int, groups: int) -> ResnetBlock2D:
        return ResnetBlock2D(
            in_channels=inputs,
            out_channels=width,
            temb_channels=None,  # type: ignore[arg-type]  # declared int, None means no embedding
            groups=groups,
            eps=1e-6,
        )

    def forward(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        """Both (n, width, h, w) -> the residual that the fidelity weight scales."""
        x = self.enter(torch.cat([encoded, decoded], dim=1), None)
        out: Tensor = self.leave(self.dense(x), None)
        return out
