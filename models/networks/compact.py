"""The compact autoencoder: a latent that holds the image at a quarter of its size.

Sixteen channels at an eighth of the size. Twelve are the image at a quarter: 2 x 2 pixels in a Haar
basis, their colours as brightness and two differences. Nothing is learned there, so the latent of a
small image is that image. Four more carry what the decoder needs beside it. In flat areas only the
means are not zero, so a sampler's small errors there make no 2 x 2 pattern. What the deep layers
add is interleaved; the loss `phase` keeps it from being such a pattern.

No norms and no attention: a part of an image is computed as the whole is, and strips need no
statistics (`models.strips`). The decoder's middle is the compact network of Real-ESRGAN (arXiv
2107.10833, section 4: SRVGGNet), its end doubles the size twice by interpolation and convolutions,
as ESRGAN's does (arXiv 1809.00219): interleaved channels would leave a lattice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import CompactConfig
from models.networks.autoencoder import EncoderOutput

_Weight = TypeVar("_Weight", float, Tensor)

HAAR_CHANNELS = 12
"""Channels of the latent that are the image at a quarter of its size."""


@lru_cache
@torch.inference_mode(False)  # kept, and so for calls with gradients too
def _basis(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Orthonormal (12, 12): colour basis times the Haar basis of 2 x 2 pixels."""
    colors = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    colors = colors / colors.norm(dim=1, keepdim=True)
    pixels = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    return torch.kron(colors, pixels.double()).to(device, dtype)


def quarter(image: Tensor) -> Tensor:
    """(n, 3, H, W) -> (n, 3, H/4, W/4), bicubically reduced with antialiasing, in float32."""
    return F.interpolate(image.float(), scale_factor=0.25, mode="bicubic", antialias=True)


def haar(small: Tensor) -> Tensor:
    """The image at a quarter of its size (n, 3, 2h, 2w) -> latent channels (n, 12, h, w)."""
    basis = _basis(small.device, small.dtype)
    return F.conv2d(F.pixel_unshuffle(small, 2), basis[:, :, None, None])


def inverse_haar(latent: Tensor) -> Tensor:
    """Inverse of `haar`; reads the first twelve channels."""
    basis = _basis(latent.device, latent.dtype)
    pixels = F.conv2d(latent[:, :HAAR_CHANNELS], basis.t()[:, :, None, None].contiguous())
    return F.pixel_shuffle(pixels, 2)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after SiLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(F.silu(self.conv1(F.silu(x))))
        return out


class CompactEncoder(nn.Module):
    """What the four free channels hold, and the features of a quarter of the size."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        fine, coarse = config.quarter_width, config.eighth_width
        self.conv_in = nn.Conv2d(48, fine, 3, padding=1)
        self.fine = nn.Sequential(*(ResidualBlock(fine) for _ in range(config.encoder_blocks[0])))
        # Padded right and below, as the released encoder's.
        self.down = nn.Conv2d(fine, coarse, 3, stride=2)
        self.coarse = nn.Sequential(
            *(ResidualBlock(coarse) for _ in range(config.encoder_blocks[1]))
        )
        self.conv_out = nn.Conv2d(coarse, config.latent_channels - HAAR_CHANNELS, 3, padding=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3, H, W) -> free channels (n, c - 12, H/8, W/8), features (n, 67, H/4, W/4)."""
        feature = self.features(image)
        return self.free_channels(feature), feature

    def features(self, image: Tensor) -> Tensor:
        """(n, 3, H, W) -> (n, 64 + 3, H/4, W/4); the last three are the image itself."""
        x = self.fine(self.conv_in(F.pixel_unshuffle(image, 4)))
        return torch.cat([x, quarter(image).to(x.dtype)], dim=1)

    def free_channels(self, feature: Tensor) -> Tensor:
        """(n, 67, H/4, W/4) -> (n, c - 12, H/8, W/8)."""
        x = self.coarse(self.down(F.pad(feature[:, :-3], (0, 1, 0, 1))))
        out: Tensor = self.conv_out(F.silu(x))
        return out


class CompactFusion(nn.Module):
    """The compact network a second time, from the image that the encoder has seen (paper, eq. 5).

    That image, enlarged, is what it adds detail to. To take the sampled one and learn away what the
    sampler has made of it cost a tenth of a decibel (docs/training.md).
    """

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        width = config.quarter_width
        self.picture_in = nn.Conv2d(3, width, 3, padding=1)
        self.enter = nn.Conv2d(2 * width, width, 1)
        self.activation = nn.PReLU(width)
        self.layers = compact_layers(width, config.layers)
        self.conv_out = nn.Conv2d(width, 3 * 16, 3, padding=1)
        # At first nothing is read of the features, and the image is the enlarged one.
        for conv in (self.enter, self.conv_out):
            nn.init.zeros_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, feature: Tensor, x: Tensor) -> Tensor:
        """The encoder's feature (n, width + 3, h, w) and the decoder's first map (n, width, h, w)
        -> image (n, 3, 4h, 4w)."""
        return self.image(feature, run_layers(self.layers, self.start(feature, x)))

    def start(self, feature: Tensor, x: Tensor) -> Tensor:
        """What the layers read."""
        entered = self.enter(torch.cat([feature[:, :-3], x], dim=1))
        # The compact network reads images in [0, 1].
        out: Tensor = self.activation(self.picture_in(feature[:, -3:] * 0.5 + 0.5) + entered)
        return out

    def image(self, feature: Tensor, x: Tensor) -> Tensor:
        """Of what the layers make. To interleave channels leaves no lattice here: the terms that
        drive it there, perceptual ones, have no part in it."""
        base = F.interpolate(feature[:, -3:], scale_factor=4.0, mode="bicubic")
        return base + F.pixel_shuffle(self.conv_out(x), 4)


def compact_layers(width: int, count: int) -> nn.ModuleList:
    """Convolutions at a quarter of the size, each with its activation."""
    return nn.ModuleList(
        nn.ModuleDict({"conv": nn.Conv2d(width, width, 3, padding=1), "act": nn.PReLU(width)})
        for _ in range(count)
    )


def run_layers(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """(n, width, h, w) through `compact_layers`."""
    for layer in layers:
        assert isinstance(layer, nn.ModuleDict)
        x = layer["act"](layer["conv"](x))
    return x


def fused_share(fidelity: _Weight) -> _Weight:
    """How much of the image is the fusion's. The square: half of it is nearly as smooth as all, and
    so the steps of sharpness are alike (docs/training.md)."""
    return fidelity * fidelity


class CompactHead(nn.Module):
    """From features at a quarter of the size to what the image is beside its enlarged quarter."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        quarter_, half, full = config.head_widths
        middle = (quarter_ + half) // 2 // 8 * 8
        self.conv1 = nn.Conv2d(config.quarter_width, quarter_, 3, padding=1)
        self.conv2 = nn.Conv2d(quarter_, middle, 3, padding=1)
        self.conv3 = nn.Conv2d(middle, half, 3, padding=1)
        self.conv4 = nn.Conv2d(half, full, 3, padding=1)
        self.conv5 = nn.Conv2d(full, full, 3, padding=1)
        self.conv_out = nn.Conv2d(full, 3, 3, padding=1)
        # At first the image is its enlarged quarter.
        nn.init.zeros_(self.conv_out.weight)
        assert self.conv_out.bias is not None
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 64, h, w) -> (n, 3, 4h, 4w)."""
        x = F.leaky_relu(self.conv1(x), 0.2)
        x = F.leaky_relu(self.conv2(repeat(x)), 0.2)
        x = F.leaky_relu(self.conv3(x), 0.2)
        x = F.leaky_relu(self.conv4(repeat(x)), 0.2)
        x = F.leaky_relu(self.conv5(x), 0.2)
        out: Tensor = self.conv_out(x)
        return out


def repeat(x: Tensor) -> Tensor:
    """Twice the size, every pixel four times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def enlarge(small: Tensor) -> Tensor:
    """The image at a quarter of its size (n, 3, h, w) -> (n, 3, 4h, 4w), bilinearly."""
    return F.interpolate(small, scale_factor=4.0, mode="bilinear")


class CompactDecoder(nn.Module):
    """Deep layers at an eighth of the size, the compact network at a quarter, and the head."""

    def __init__(self, config: CompactConfig, *, fusion: bool = True) -> None:
        super().__init__()
        fine, coarse = config.quarter_width, config.eighth_width
        self.conv_in = nn.Conv2d(config.latent_channels, coarse, 3, padding=1)
        self.coarse = nn.Sequential(*(ResidualBlock(coarse) for _ in range(config.decoder_blocks)))
        self.rise = nn.Conv2d(coarse, 4 * fine, 1)
        self.picture_in = nn.Conv2d(3, fine, 3, padding=1)
        self.activation = nn.PReLU(fine)
        self.layers = compact_layers(fine, config.layers)
        self.fusion = CompactFusion(config) if fusion else None
        self.head = CompactHead(config)

    def forward(
        self, latent: Tensor, features: Sequence[Tensor] | None, fidelity: Tensor | None
    ) -> Tensor:
        small = inverse_haar(latent)
        entry = self.entry(latent, small)
        if features is None or self.fusion is None:
            return self.plain(entry, small)
        fused: Tensor = self.fusion(features[0], entry)
        if fidelity is None:
            return fused
        plain = self.plain(entry, small)
        return plain + fused_share(fidelity) * (fused - plain)

    def plain(self, entry: Tensor, small: Tensor) -> Tensor:
        """The image without fusion, of the decoder's first map."""
        out: Tensor = enlarge(small) + self.head(run_layers(self.layers, entry))
        return out

    def entry(self, latent: Tensor, small: Tensor) -> Tensor:
        """Latent (n, c, h, w) and the image that it holds -> (n, 64, 2h, 2w)."""
        # The compact network reads images in [0, 1].
        x = self.picture_in(small * 0.5 + 0.5)
        x = x + F.pixel_shuffle(self.rise(self.coarse(self.conv_in(latent))), 2)
        out: Tensor = self.activation(x)
        return out


class CompactAutoencoder(nn.Module):
    """Pixels in [-1, 1] to latents and back; the protocol of `Autoencoder`.

    Args:
        config: widths and scaling.
        fusion: whether the decoder has fusion layers; the plain first stage has none.
        decoder: whether there is a decoder; without one it only encodes.
    """

    def __init__(self, config: CompactConfig, *, fusion: bool = True, decoder: bool = True) -> None:
        super().__init__()
        self.config = config
        self.encoder = CompactEncoder(config)
        if decoder:
            self.decoder = CompactDecoder(config, fusion=fusion)

    def encode(self, image: Tensor) -> EncoderOutput:
        """Image (n, 3, H, W) in [-1, 1], sides multiples of 8 -> unscaled latent and features."""
        free, feature = self.encoder(image)
        small = haar(quarter(image)).to(free.dtype)
        return EncoderOutput(torch.cat([small, free], dim=1), (feature,))

    def latent(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latent of what `encode` gave. There is no posterior: `noise` changes nothing."""
        return moments * self._scale(moments)

    def unscale(self, latent: Tensor) -> Tensor:
        """Inverse of `latent`."""
        return latent / self._scale(latent)

    def decode(
        self,
        latent: Tensor,
        features: Sequence[Tensor] | None = None,
        fidelity: Tensor | None = None,
    ) -> Tensor:
        """Unscaled latent (n, c, h, w) -> image (n, 3, 8h, 8w), nominally in [-1, 1]; arguments as
        of `Autoencoder.decode`."""
        out: Tensor = self.decoder(latent, features, fidelity)
        return out

    def _scale(self, like: Tensor) -> Tensor:
        return torch.tensor(self.config.latent_scale).view(1, -1, 1, 1).to(like)
