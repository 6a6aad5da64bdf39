"""SD's KL autoencoder, its encoder's features kept and its decoder wrapped (paper, section 3.3).

Built from diffusers' `Encoder` and `Decoder`; their modules and names are unchanged, only the
forward passes differ, and `decoder.fusion` is new.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D, UpDecoderBlock2D
from torch import Tensor, nn

from models.config import AutoencoderConfig
from models.networks.fusion import FusionLayer

__all__ = ["Autoencoder", "Encoded"]


class Encoded(NamedTuple):
    """What an encoder says of an image."""

    moments: Tensor
    """Unscaled: mean and log-variance of the posterior, (n, 2 * latent_channels, H/8, W/8); of the
    compact autoencoder the latent itself."""
    features: tuple[Tensor, ...]
    """What the decoder's fusion layers read, the finest first: (n, width, H/2, W/2) and
    (n, width, H/4, W/4); of the compact autoencoder the latter alone."""


class _FeatureEncoder(Encoder):
    def forward(self, sample: Tensor) -> Encoded:  # type: ignore[override]  # the base gives no features
        sample = self.conv_in(sample)
        seen = []
        for block in cast("Iterable[DownEncoderBlock2D]", self.down_blocks):
            for resnet in block.resnets:
                sample = resnet(sample, None)
            seen.append(sample)
            if block.downsamplers is not None:
                sample = block.downsamplers[0](sample)
        sample = self.mid_block(sample)
        sample = self.conv_out(self.conv_act(self.conv_norm_out(sample)))
        return Encoded(sample, (seen[1], seen[2]))


class _WrappedDecoder(Decoder):
    """Decoder whose quarter- and half-size levels add `fidelity * fusion(encoded, decoded)`."""

    def __init__(self, config: AutoencoderConfig, *, fusion: bool) -> None:
        super().__init__(
            in_channels=config.latent_channels,
            out_channels=3,
            up_block_types=("UpDecoderBlock2D",) * len(config.widths),
            block_out_channels=config.widths,
            layers_per_block=config.layers,
            norm_num_groups=config.groups,
        )
        self.fusion = (
            nn.ModuleDict(
                {
                    name: FusionLayer(
                        config.widths[level], config.growth, config.fusion_blocks, config.groups
                    )
                    for name, level in (("half_size", 1), ("quarter_size", 2))
                }
            )
            if fusion
            else None
        )

    def forward(  # type: ignore[override]  # the base takes no features
        self,
        sample: Tensor,
        features: Sequence[Tensor] | None = None,
        fidelity: Tensor | None = None,
    ) -> Tensor:
        sample = self.mid_block(self.conv_in(sample))
        # Deepest level first: of four levels the second is a quarter of the image's size.
        at = {
            len(self.up_blocks) - 3: ("quarter_size", 1),
            len(self.up_blocks) - 2: ("half_size", 0),
        }
        for i, block in enumerate(cast("Iterable[UpDecoderBlock2D]", self.up_blocks)):
            for resnet in block.resnets:
                sample = resnet(sample, None)
            if features is not None and self.fusion is not None and i in at:
                name, place = at[i]
                sample = sample + fidelity * self.fusion[name](features[place], sample)
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

    def encode(self, image: Tensor) -> Encoded:
        """Image (n, 3, H, W) in [-1, 1], sides multiples of 8 -> posterior moments, features."""
        moments, features = self.encoder(image)
        return Encoded(self.quant_conv(moments), features)

    def latent(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latent of the posterior: its mean, or a sample where `noise` is given."""
        mean, log_variance = moments.chunk(2, dim=1)
        if noise is not None:
            mean = mean + (0.5 * log_variance.clamp(-30.0, 20.0)).exp() * noise
        return mean * self.config.scaling_factor

    def unscaled(self, latent: Tensor) -> Tensor:
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
            latent: what the sampler returned, `unscaled`.
            features: the encoder's, of the upsampled LR image; None decodes plainly.
            fidelity: with features: scalar tensor w in [0, 1] (eq. 5). 0 is as without them.
        """
        out: Tensor = self.decoder(self.post_quant_conv(latent), features, fidelity)
        return out
