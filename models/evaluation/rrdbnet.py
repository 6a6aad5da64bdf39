"""ESRGAN's generator, with which Real-ESRGAN was trained too: arXiv 1809.00219, section 3.1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.evaluation.errors import BaselineUnavailable
from models.evaluation.ncnn import Convolution
from models.networks.fusion import ResidualInResidual

__all__ = ["RRDBNet"]


class RRDBNet(nn.Module):
    """Residual-in-residual dense blocks, then twice nearest enlargement by 2 and a convolution.

    Args:
        blocks: how many residual-in-residual blocks; 23 in Real-ESRGAN x4plus.
        width: channels.
        growth: channels that each dense convolution adds.
    """

    def __init__(self, blocks: int = 23, width: int = 64, growth: int = 32) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 3, padding=1)

        # In the order in which a picture goes through them: `load` counts on it.
        self.enter = conv(3, width)
        self.body = nn.Sequential(*(ResidualInResidual(width, growth) for _ in range(blocks)))
        self.trunk = conv(width, width)
        self.up = nn.ModuleList([conv(width, width), conv(width, width)])
        self.last = conv(width, width)
        self.leave = conv(width, 3)

    def load(self, layers: Sequence[Convolution]) -> None:
        """Takes the weights of an exported graph, in its order.

        Raises:
            BaselineUnavailable: it is another network's.
        """
        ours = [m for m in self.modules() if isinstance(m, nn.Conv2d)]
        if len(ours) != len(layers):
            raise BaselineUnavailable(
                f"The model has {len(layers)} convolutions, but RRDBNet has {len(ours)}."
            )
        with torch.no_grad():
            for conv, layer in zip(ours, layers, strict=True):
                if conv.weight.shape != layer.weight.shape:
                    raise BaselineUnavailable(
                        f"The convolution {layer.name} has the shape {tuple(layer.weight.shape)}, "
                        f"but RRDBNet has {tuple(conv.weight.shape)} in its place."
                    )
                assert conv.bias is not None
                conv.weight.copy_(layer.weight)
                conv.bias.copy_(layer.bias)

    def forward(self, image: Tensor) -> Tensor:
        """(n, 3, h, w) in [0, 1] -> (n, 3, 4h, 4w), nominally in [0, 1]."""
        x = self.enter(image)
        x = x + self.trunk(self.body(x))
        for conv in self.up:
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        out: Tensor = self.leave(F.leaky_relu(self.last(x), 0.2))
        return out
