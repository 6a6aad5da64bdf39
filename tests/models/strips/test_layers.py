"""A group norm over the rows of several maps."""

from __future__ import annotations

import torch
from torch import nn

from models.strips import MapStore, StripConfig
from models.strips.layers import Normalization
from tests.models.strips.images import CPU


def test_normalization_is_the_group_norm_of_the_joined_maps() -> None:
    norm = nn.GroupNorm(2, 6, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(1, 6, 9, 5) + torch.arange(6).view(1, 6, 1, 1)
    with MapStore(StripConfig(4), CPU, torch.float32) as store:
        # The second group takes channels of both maps.
        maps = [store.new(channels, 9, 5, with_statistics=True) for channels in (2, 4)]
        for feature_map, channels in zip(maps, torch.split(x, [2, 4], dim=1), strict=True):
            # A strip that failed comes again, shorter, and is counted once.
            feature_map.write(0, channels[:, :, :8])
            for top in (0, 4, 8):
                feature_map.write(top, channels[:, :, top : top + 4])
        torch.testing.assert_close(Normalization(norm, maps)(x), norm(x))
