"""Feature modulation (SFT) at the end of a UNet residual branch: paper, section 3.2, eq. 3."""

from __future__ import annotations

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

__all__ = ["FeatureModulation", "ModulatedResnetBlock2D"]


class FeatureModulation(nn.Module):
    """Scales and shifts a normalised feature map by what the time-aware encoder saw.

    Args:
        channels: width of the modulated map.
        feature_width: width of the encoder's feature.
        hidden: width of the shared convolution.
        groups: groups of the normalisation.
    """

    def __init__(self, channels: int, feature_width: int, hidden: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-5)
        self.shared = nn.Conv2d(feature_width, hidden, 3, padding=1)
        self.gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.beta = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, hidden: Tensor, feature: Tensor) -> Tensor:
        """hidden (n, channels, h, w), feature (n, feature_width, h, w) -> like hidden."""
        actv = torch.relu(self.shared(feature))
        out: Tensor = self.norm(hidden) * (1 + self.gamma(actv)) + self.beta(actv)
        return out


class ModulatedResnetBlock2D(ResnetBlock2D):
    """diffusers' residual block whose branch is modulated before the skip is added.

    The feature is an argument, so nothing about a call is left on the module and concurrent
    jobs cannot mix.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding_width: int,
        feature_width: int,
        modulation_width: int,
        groups: int,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            temb_channels=embedding_width,
            groups=groups,
            eps=1e-5,
        )
        self.modulation = FeatureModulation(out_channels, feature_width, modulation_width, groups)

    def forward(self, sample: Tensor, temb: Tensor, feature: Tensor) -> Tensor:
        """sample (n, in, h, w), temb (n, e) after SiLU, feature (n, f, h, w) -> (n, out, h, w)."""
        hidden = self.conv1(torch.nn.functional.silu(self.norm1(sample)))
        hidden = hidden + self.time_emb_proj(temb)[:, :, None, None]
        hidden = self.conv2(torch.nn.functional.silu(self.norm2(hidden)))
        skip = sample if self.conv_shortcut is None else self.conv_shortcut(sample)
        out: Tensor = skip + self.modulation(hidden, feature)
        return out
