"""How kernels lie in memory."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["channels_last"]


def channels_last(part: nn.Module) -> None:
    """Lays the kernels of convolutions out so; their results follow.

    A kernel is a `weight` of four dimensions. Keys and values of the constant context have four as
    well, and attention of keys so laid out is none of the fused ones.
    """
    for name, parameter in part.named_parameters():
        if parameter.ndim == 4 and name.endswith(".weight"):
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
