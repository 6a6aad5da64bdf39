"""Weights made of weights: computed in float64, rounded once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["constant", "convolution", "wide"]


def wide(tensor: Tensor | None) -> Tensor:
    """A weight to compute with. None, which a bias may be, is 0."""
    if tensor is None:
        return torch.zeros((), dtype=torch.float64)
    return tensor.detach().to(torch.float64)


def constant(values: Tensor, like: Tensor) -> nn.Parameter:
    """A weight of the dtype and on the device of `like`.

    A parameter, because those are what moves between devices and what is counted.
    """
    rounded = values.to(device=like.device, dtype=like.dtype)
    return nn.Parameter(rounded.contiguous(), requires_grad=False)


def convolution(weight: Tensor, bias: Tensor, like: Tensor) -> nn.Conv2d:
    """A 3x3 convolution with padding 1 of this kernel (out, in, 3, 3), as `constant`."""
    out, channels = weight.shape[:2]
    made = nn.Conv2d(channels, out, 3, padding=1, device="meta")
    made.weight, made.bias = constant(weight, like), constant(bias, like)
    return made
