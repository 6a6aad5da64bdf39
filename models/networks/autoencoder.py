"""SD's KL autoencoder, its encoder's features kept and its decoder wrapped (paper, section 3.3).

Built from diffusers' `Encoder` and `Decoder`; their modules and names are unchanged, only the
forward passes differ, and `decoder.fusion` is new: controllable feature wrapping (CFW, eq. 5) of
residual-in-residual dense blocks, which are those of ESRGAN (arXiv 1809.00219, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D, UpDecoderBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import AutoencoderConfig

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
        self.enter = self._resnet(2 * width, width, config.groups)
        self.dense = nn.Sequential(
            *(ResidualInResidual(width, config.growth) for _ in range(config.fusion_blocks))
        )
        self.leave = self._resnet(width, width, config.groups)

    @staticmethod
    def _resnet(inputs: int, width: int, groups: int) -> ResnetBlock2D:
        return ResnetBlock2D(
            in_channels=inputs,
            out_channels=width,
            temb_channels=None,  # type: ignore[arg-type]  # declared int, None means no embedding
            groups=groups,
            eps=1e-6,
        )

    def forward(self, encoder_feature: Tensor, x: Tensor) -> Tensor:
        """Both (n, width, h, w) -> the residual that the fidelity weight scales."""
        x = self.enter(torch.cat([encoder_feature, x], dim=1), None)
        out: Tensor = self.leave(self.dense(x), None)
        return out


class EncoderOutput(NamedTuple):
    """Of an image."""

    moments: Tensor
    """Unscaled: mean and log-variance of the posterior, (n, 2 * latent_channels, H/8, W/8); of the
    compact autoencoder the latent itself."""
    features: tuple[Tensor, ...]
    """What the decoder's fusion layers read, the finest first: (n, width, H/2, W/2) and
    (n, width, H/4, W/4); of the compact autoencoder the latter alone."""


class _FeatureEncoder(Encoder):
    def forward(self, sample: Tensor) -> EncoderOutput:  # type: ignore[override]  # the base gives no features
        sample = self.conv_in(sample)
        levels = []
        for block in cast("Iterable[DownEncoderBlock2D]", self.down_blocks):
            for resnet in block.resnets:
                sample = resnet(sample, None)
            levels.append(sample)
            if block.downsamplers is not None:
                sample = block.downsamplers[0](sample)
        sample = self.mid_block(sample)
        sample = self.conv_out(self.conv_act(self.conv_norm_out(sample)))
        return EncoderOutput(sample, (levels[1], levels[2]))


class _WrappedDecoder(Decoder):
    """Decoder whose quarter- and half-size levels add `fidelity * fusion(feature, sample)`."""

    def __init__(self, config: AutoencoderConfig, *, fusion: bool) -> None:
        super().__init__(
            in_channels=config.latent_channels,
            out_channels=3,
            up_block_types=("UpDecoderBlock2D",) * len(config.widths),
            block_out_channels=config.widths,
            layers_per_block=config.layers,
            norm_num_groups=config.groups,
        )
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

    def forward(  # type: ignore[override]  # the base takes no features
        self,
        sample: Tensor,
        features: Sequence[Tensor] | None = None,
        fidelity: Tensor | None = None,
    ) -> Tensor:
        sample = self.mid_block(self.conv_in(sample))
        for level, block in enumerate(cast("Iterable[UpDecoderBlock2D]", self.up_blocks)):
            for resnet in block.resnets:
                sample = resnet(sample, None)
            if features is not None and (fusion := self.fusion_at(level)):
                layer, i = fusion
                sample = sample + fidelity * layer(features[i], sample)
            if block.upsamplers is not None:
                sample = block.upsamplers[0](sample)
        out: Tensor = self.conv_out(self.conv_act(self.conv_norm_out(sample)))
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
        self.encoder = _FeatureEncoder(
            in_channels=3,
            out_channels=latent,
            down_block_types=("DownEncoderBlock2D",) * len(config.widths),
            block_out_channels=config.widths,
            layers_per_block=config.layers,
            norm_num_groups=config.groups,
        )
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        if decoder:
            self.post_quant_conv = nn.Conv2d(latent, latent, 1)
            self.decoder = _WrappedDecoder(config, fusion=fusion)

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
            fidelity: with features: scalar tensor w in [0, 1] (eq. 5). 0 is as without them.
        """
        out: Tensor = self.decoder(self.post_quant_conv(latent), features, fidelity)
        return out
