"""The denoising UNet of Stable Diffusion 2.1 with StableSR's feature modulation (SFT): paper,
section 3.2, eq. 3.

Module names follow diffusers' `UNet2DConditionModel`, so a diffusers folder of the base model
maps by name; only `*.modulation.*` is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import UNetConfig
from models.networks.layers import (
    Downsample,
    ResnetBlock,
    TimestepEmbedding,
    Transformer,
    Upsample,
)


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


class ModulatedResnetBlock(ResnetBlock):
    """A residual block that is modulated before the skip is added.

    The feature is an argument, so nothing about a call is left on the module and concurrent
    jobs cannot mix.
    """

    def __init__(self, config: UNetConfig, in_channels: int, out_channels: int) -> None:
        super().__init__(
            in_channels,
            out_channels,
            groups=config.groups,
            eps=1e-5,
            embedding_width=config.embedding_width,
        )
        self.modulation = FeatureModulation(
            out_channels, config.feature_width, config.modulation_width, config.groups
        )

    def forward(self, x: Tensor, temb: Tensor | None, feature: Tensor) -> Tensor:  # type: ignore[override]  # one argument more
        """x (n, in, h, w), temb (n, e), feature (n, f, h, w) -> (n, out, h, w)."""
        out: Tensor = self.skip(x) + self.modulation(self.residual(x, temb), feature)
        return out


class _Level(nn.Module):
    """Residual blocks of one resolution, each followed by a transformer where there is one."""

    def __init__(
        self, config: UNetConfig, width: int, inputs: Sequence[int], transformers: int
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ModulatedResnetBlock(config, i, width) for i in inputs)
        blocks = [
            Transformer(width, config.head_channels, config.context_width, config.groups)
            for _ in range(transformers)
        ]
        self.attentions = nn.ModuleList(blocks) if blocks else None

    def _layer(
        self, i: int, x: Tensor, temb: Tensor, feature: Tensor, context: Tensor | None
    ) -> Tensor:
        x = self.resnets[i](x, temb, feature)
        if self.attentions is not None:
            x = self.attentions[i](x, context)
        return x


class _DownBlock(_Level):
    def __init__(self, config: UNetConfig, level: int) -> None:
        width, previous = config.widths[level], config.widths[max(level - 1, 0)]
        inputs = [previous] + [width] * (config.layers - 1)
        super().__init__(config, width, inputs, len(inputs) * config.attention[level])
        last = level == len(config.widths) - 1
        self.downsamplers = None if last else nn.ModuleList([Downsample(width, symmetric=True)])

    def forward(
        self, x: Tensor, temb: Tensor, feature: Tensor, context: Tensor | None
    ) -> list[Tensor]:
        """All states in order; the last one is what the next level reads."""
        states = []
        for i in range(len(self.resnets)):
            x = self._layer(i, x, temb, feature, context)
            states.append(x)
        if self.downsamplers is not None:
            states.append(self.downsamplers[0](x))
        return states


class _MidBlock(_Level):
    def __init__(self, config: UNetConfig) -> None:
        width = config.widths[-1]
        super().__init__(config, width, [width, width], 1)

    def forward(self, x: Tensor, temb: Tensor, feature: Tensor, context: Tensor | None) -> Tensor:
        x = self._layer(0, x, temb, feature, context)
        out: Tensor = self.resnets[1](x, temb, feature)
        return out


class _UpBlock(_Level):
    def __init__(self, config: UNetConfig, level: int, skips: Sequence[int], below: int) -> None:
        width = config.widths[level]
        inputs = [
            x + skip for x, skip in zip([below] + [width] * config.layers, skips, strict=True)
        ]
        super().__init__(config, width, inputs, len(inputs) * config.attention[level])
        self.upsamplers = None if level == 0 else nn.ModuleList([Upsample(width)])

    def forward(
        self, x: Tensor, skips: list[Tensor], temb: Tensor, feature: Tensor, context: Tensor | None
    ) -> Tensor:
        """For the next finer level, if there is one; `skips` lose what was read of them."""
        for i in range(len(self.resnets)):
            x = torch.cat([x, skips.pop()], dim=1)
            x = self._layer(i, x, temb, feature, context)
        return x if self.upsamplers is None else self.upsamplers[0](x)


class ModulatedUNet(nn.Module):
    """Predicts the noise (or v) of a latent tile, guided by the time-aware encoder's features."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.time_embedding = TimestepEmbedding(widths[0], config.embedding_width)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(_DownBlock(config, i) for i in range(len(widths)))
        self.mid_block = _MidBlock(config)

        skips = [widths[0]]
        for level, width in enumerate(widths):
            skips += [width] * (config.layers + (level < len(widths) - 1))
        self.up_blocks = nn.ModuleList()
        below = widths[-1]
        for level in reversed(range(len(widths))):
            widths_of_skips = [skips.pop() for _ in range(config.layers + 1)]
            self.up_blocks.append(_UpBlock(config, level, widths_of_skips, below))
            below = widths[level]

        self.conv_norm_out = nn.GroupNorm(config.groups, widths[0], eps=1e-5)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

        # What `models.fusing` puts in the place of layers.
        self.level_convs: nn.ModuleList | None = None
        """Of the blocks' first convolutions of a feature, finest level first."""
        self.knows_context = False
        """Whether the cross-attention holds the empty prompt's keys and values."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        context: Tensor | None,
        features: Sequence[Tensor],
    ) -> Tensor:
        """One prediction.

        Args:
            sample: noisy latent (n, in_channels, h, w); h and w multiples of 8.
            timestep: (n,) of the full 1000-step schedule.
            context: text embedding (n, tokens, context_width); where `knows_context`, None is the
                empty prompt's.
            features: the encoder's, finest first: (n, feature_width, h / 2^i, w / 2^i).

        Returns:
            (n, out_channels, h, w).
        """
        temb = self.time_embedding(timestep)
        if self.level_convs is not None:
            features = [conv(f) for conv, f in zip(self.level_convs, features, strict=True)]
        x = self.conv_in(sample)
        skips = [x]
        for block, feature in zip(self.down_blocks, features, strict=True):
            skips += block(skips[-1], temb, feature, context)
        x = self.mid_block(skips[-1], temb, features[-1], context)
        for block, feature in zip(self.up_blocks, reversed(features), strict=True):
            x = block(x, skips, temb, feature, context)
        return cast("Tensor", self.conv_out(F.silu(self.conv_norm_out(x))))
