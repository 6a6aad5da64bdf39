"""The time-aware encoder: half a UNet over the LR latent, paper, section 3.1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from models.config import EncoderConfig
from models.networks.layers import Downsample, PixelAttention, ResnetBlock, TimestepEmbedding


def _resnet(config: EncoderConfig, inputs: int, width: int) -> ResnetBlock:
    return ResnetBlock(
        inputs, width, groups=config.groups, eps=1e-5, embedding_width=config.embedding_width
    )


def _attention(config: EncoderConfig, width: int) -> PixelAttention:
    return PixelAttention(width, width // config.heads, groups=config.groups, eps=1e-5)


class _Level(nn.Module):
    """Residual blocks of one resolution, each followed by self-attention where there is one."""

    def __init__(self, config: EncoderConfig, level: int) -> None:
        super().__init__()
        width = config.widths[level]
        inputs = [config.widths[max(level - 1, 0)]] + [width] * (config.layers - 1)
        self.resnets = nn.ModuleList(_resnet(config, i, width) for i in inputs)
        self.attentions = (
            nn.ModuleList(_attention(config, width) for _ in inputs)
            if config.attention[level]
            else None
        )
        last = level == len(config.widths) - 1
        self.downsampler = None if last else Downsample(width, symmetric=True)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, temb)
            if self.attentions is not None:
                x = self.attentions[i](x)
        return x


class _Middle(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.widths[-1]
        self.resnets = nn.ModuleList(_resnet(config, width, width) for _ in range(2))
        self.attention = _attention(config, width)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        x = self.attention(self.resnets[0](x, temb))
        out: Tensor = self.resnets[1](x, temb)
        return out


class TimeAwareEncoder(nn.Module):
    """Features of the LR latent that depend on how noisy the sample is."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.widths[0]
        self.time_embedding = TimestepEmbedding(width, config.embedding_width)
        self.conv_in = nn.Conv2d(config.in_channels, width, 3, padding=1)
        self.levels = nn.ModuleList(_Level(config, i) for i in range(len(config.widths)))
        self.middle = _Middle(config)
        self.taps = nn.ModuleList(_resnet(config, w, config.feature_width) for w in config.widths)

    def forward(self, latent: Tensor, timestep: Tensor) -> list[Tensor]:
        """Features for the UNet's levels, finest first.

        Args:
            latent: LR latent (n, in_channels, h, w), scaled; h and w multiples of 8.
            timestep: (n,) of the full 1000-step schedule.

        Returns:
            One (n, feature_width, h / 2^i, w / 2^i) a level.
        """
        temb = self.time_embedding(timestep)
        x = self.conv_in(latent)
        features = []
        for level in cast("Iterable[_Level]", self.levels):
            x = level(x, temb)
            if level.downsampler is not None:
                # Tapped just before the strided convolution.
                features.append(x)
                x = level.downsampler(x)
        features.append(self.middle(x, temb))
        return [tap(f, temb) for tap, f in zip(self.taps, features, strict=True)]
