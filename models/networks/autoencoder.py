"""SD's KL autoencoder, its encoder's features kept and its decoder wrapped (paper, section 3.3).

Names are those of diffusers' `AutoencoderKL`; only `decoder.fusion` is new: controllable feature
wrapping (CFW, eq. 5) of residual-in-residual dense blocks, which are those of ESRGAN (arXiv
1809.00219, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import AutoencoderConfig
from models.networks.layers import Downsample, PixelAttention, ResnetBlock, Upsample

RESIDUAL_SCALE = 0.2
_EPS = 1e-6


def _resnet(config: AutoencoderConfig, inputs: int, width: int) -> ResnetBlock:
    return ResnetBlock(inputs, width, groups=config.groups, eps=_EPS)


class DenseBlock(nn.Module):
    """Five 3x3 convolutions, each reading all that came before; residual scaled by 0.2."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(width + i * growth, growth if i < 4 else width, 3, padding=1)
            for i in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        inputs = x
        for conv in list(self.convs)[:-1]:
            inputs = torch.cat([inputs, F.leaky_relu(conv(inputs), 0.2)], dim=1)
        out: Tensor = x + RESIDUAL_SCALE * self.convs[-1](inputs)
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
    """What the decoder's feature lacks, predicted from the encoder's of the same size."""

    def __init__(self, config: AutoencoderConfig, width: int) -> None:
        super().__init__()
        self.enter = _resnet(config, 2 * width, width)
        self.dense = nn.Sequential(
            *(ResidualInResidual(width, config.growth) for _ in range(config.fusion_blocks))
        )
        self.leave = _resnet(config, width, width)

    def forward(self, encoder_feature: Tensor, x: Tensor) -> Tensor:
        """Both (n, width, h, w) -> the residual that the fidelity weight scales."""
        x = self.enter(torch.cat([encoder_feature, x], dim=1))
        out: Tensor = self.leave(self.dense(x))
        return out


class EncoderOutput(NamedTuple):
    """Of an image."""

    moments: Tensor
    """Unscaled: mean and log-variance of the posterior, (n, 2 * latent_channels, H/8, W/8); of the
    compact autoencoder the latent itself."""
    features: tuple[Tensor, ...]
    """What the decoder's fusion layers read, the finest first: (n, width, H/2, W/2) and
    (n, width, H/4, W/4); of the compact autoencoder the latter alone."""


class Middle(nn.Module):
    """Residual blocks of the deepest level, with attention between them."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        width = config.widths[-1]
        self.resnets = nn.ModuleList(_resnet(config, width, width) for _ in range(2))
        attention = PixelAttention(width, width, groups=config.groups, eps=_EPS)
        self.attentions = nn.ModuleList([attention])

    def forward(self, x: Tensor) -> Tensor:
        # Laid out as the maps before it: behind another layout convolutions round otherwise.
        x = self.attentions[0](self.resnets[0](x)).contiguous()
        out: Tensor = self.resnets[1](x)
        return out


class Level(nn.Module):
    """Residual blocks of one size, and what leads to the next level's, if there is one."""

    def __init__(
        self,
        config: AutoencoderConfig,
        widths: tuple[int, int],
        blocks: int,
        sampler: Downsample | Upsample | None,
    ) -> None:
        super().__init__()
        first, width = widths
        self.resnets = nn.ModuleList(
            _resnet(config, width if i else first, width) for i in range(blocks)
        )
        samplers = None if sampler is None else nn.ModuleList([sampler])
        self.downsamplers = samplers if isinstance(sampler, Downsample) else None
        self.upsamplers = samplers if isinstance(sampler, Upsample) else None

    def forward(self, x: Tensor) -> Tensor:
        """Before the next level's size."""
        for resnet in self.resnets:
            x = resnet(x)
        return x


class Encoder(nn.Module):
    """Image (n, 3, H, W) -> moments before the last convolution, and features."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level(
                config,
                (widths[max(i - 1, 0)], width),
                config.layers,
                Downsample(width, symmetric=False) if i < last else None,
            )
            for i, width in enumerate(widths)
        )
        self.mid_block = Middle(config)
        self.conv_norm_out = nn.GroupNorm(config.groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> EncoderOutput:
        x = self.conv_in(x)
        levels = []
        for block in cast("Iterable[Level]", self.down_blocks):
            x = block(x)
            levels.append(x)
            if block.downsamplers is not None:
                x = block.downsamplers[0](x)
        x = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))
        return EncoderOutput(x, (levels[1], levels[2]))


class Decoder(nn.Module):
    """Decoder whose quarter- and half-size levels add `fidelity * fusion(feature, x)`."""

    def __init__(self, config: AutoencoderConfig, *, fusion: bool) -> None:
        super().__init__()
        widths = config.widths[::-1]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = Middle(config)
        self.up_blocks = nn.ModuleList(
            Level(
                config,
                (widths[max(i - 1, 0)], width),
                config.layers + 1,
                Upsample(width) if i < len(widths) - 1 else None,
            )
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = nn.GroupNorm(config.groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)
        # In the features' order.
        levels = {"half_size": 1, "quarter_size": 2}
        layers = {name: FusionLayer(config, config.widths[n]) for name, n in levels.items()}
        self.fusion = nn.ModuleDict(layers) if fusion else None

    def fusion_at(self, level: int) -> tuple[FusionLayer, int] | None:
        """The fusion layer of a level, the deepest being 0, and which feature it reads."""
        feature = len(self.up_blocks) - 2 - level
        if self.fusion is None or feature not in (0, 1):
            return None
        return cast("FusionLayer", self.fusion[("half_size", "quarter_size")[feature]]), feature

    def forward(
        self, x: Tensor, features: Sequence[Tensor] | None, fidelity: Tensor | None
    ) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for level, block in enumerate(cast("Iterable[Level]", self.up_blocks)):
            x = block(x)
            if features is not None and (fusion := self.fusion_at(level)):
                layer, i = fusion
                residual = layer(features[i], x)
                x = x + (residual if fidelity is None else fidelity * residual)
            if block.upsamplers is not None:
                x = block.upsamplers[0](x)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return out


class Autoencoder(nn.Module):
    """Pixels in [-1, 1] to latents and back.

    Args:
        config: widths and scaling.
        fusion: whether the decoder has fusion layers; the plain first stage has none.
        decoder: whether there is a decoder; without one it only encodes.
    """

    def __init__(
        self, config: AutoencoderConfig, *, fusion: bool = True, decoder: bool = True
    ) -> None:
        super().__init__()
        self.config = config
        latent = config.latent_channels
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        if decoder:
            self.post_quant_conv = nn.Conv2d(latent, latent, 1)
            self.decoder = Decoder(config, fusion=fusion)

    def encode(self, image: Tensor) -> EncoderOutput:
        """Image (n, 3, H, W) in [-1, 1], sides multiples of 8 -> posterior moments, features."""
        moments, features = self.encoder(image)
        return EncoderOutput(self.quant_conv(moments), features)

    def latent(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latent of the posterior: its mean, or a sample where `noise` is given."""
        mean, log_variance = moments.chunk(2, dim=1)
        if noise is not None:
            mean = mean + (0.5 * log_variance.clamp(-30.0, 20.0)).exp() * noise
        return mean * self.config.scaling_factor

    def unscale(self, latent: Tensor) -> Tensor:
        """What `decode` takes, of what the sampler gives."""
        return latent / self.config.scaling_factor

    def decode(
        self,
        latent: Tensor,
        features: Sequence[Tensor] | None = None,
        fidelity: Tensor | None = None,
    ) -> Tensor:
        """Unscaled latent (n, c, h, w) -> image (n, 3, 8h, 8w), nominally in [-1, 1].

        Args:
            latent: what the sampler returned, after `unscale`.
            features: the encoder's, of the upsampled LR image; None decodes plainly.
            fidelity: with features: scalar tensor w in [0, 1] (eq. 5), None is 1; 0 is as without
                them.
        """
        out: Tensor = self.decoder(self.post_quant_conv(latent), features, fidelity)
        return out
