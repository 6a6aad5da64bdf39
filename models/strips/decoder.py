"""The released decoder in passes: a latent and, where wanted, encoder features to an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import UpDecoderBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from models.fusing.upsampling import PhaseUpsample
from models.networks.autoencoder import Autoencoder, DenseBlock, FusionLayer, ResidualInResidual
from models.strips.blocks import dense_block, entered, head, layers, resnet, upsampled
from models.strips.encoder import middle
from models.strips.executor import Executor, Source, Write
from models.strips.store import FeatureMap
from models.strips.strips import Convolution

__all__ = ["run_decoder"]


def run_decoder(
    run: Executor,
    autoencoder: Autoencoder,
    latent: Source,
    keys: int,
    features: Sequence[FeatureMap] | None,
    fidelity: float,
    *,
    free_features: bool,
    write: Write,
) -> None:
    """Passes from an unscaled latent to the image's rows.

    Args:
        run: runs them.
        autoencoder: whose decoder.
        latent: (c, h, w)
        keys: the attention's bound.
        features: the encoder's, or None to decode plainly.
        fidelity: weight of the fusion in [0, 1].
        free_features: whether this is the last use of the features.
        write: takes the image's first row and rows (1, 3, n, W) at a time.
    """
    decoder = autoencoder.decoder
    weight = torch.tensor(fidelity, device=run.store.device, dtype=run.store.dtype)
    x = entered(run, latent, [autoencoder.post_quant_conv, decoder.conv_in])
    x = middle(run, x, decoder.mid_block, keys)
    # Deepest level first: of four levels the second is a quarter of the image's size.
    last = len(decoder.up_blocks) - 1
    at = {last - 2: ("quarter_size", 1), last - 1: ("half_size", 0)}
    for level, block in enumerate(layers(decoder.up_blocks, UpDecoderBlock2D)):
        for residual in layers(block.resnets, ResnetBlock2D):
            x = resnet(run, [x], residual)
        if features is not None and decoder.fusion is not None and level in at:
            name, place = at[level]
            fusion = cast(FusionLayer, decoder.fusion[name])
            x = _fused(run, features[place], x, fusion, weight, free_features)
        if block.upsamplers is not None:
            (sampler,) = block.upsamplers
            conv = sampler.conv if isinstance(sampler, Upsample2D) else sampler
            x = upsampled(run, x, cast("Convolution | PhaseUpsample", conv))
    head(run, x, cast(nn.GroupNorm, decoder.conv_norm_out), [decoder.conv_out], write)


def _fused(
    run: Executor,
    feature: FeatureMap,
    x: FeatureMap,
    fusion: FusionLayer,
    weight: Tensor,
    free: bool,
) -> FeatureMap:
    """`x + weight * fusion(feature, x)` (paper, eq. 5); `x` is freed, and the feature if `free`."""
    r = resnet(run, [feature, x], fusion.enter, last=[free, False])
    blocks = layers(fusion.dense, ResidualInResidual)
    for block in blocks:
        entry = r
        *inner, end = layers(block.blocks, DenseBlock)
        for dense in inner:
            r = dense_block(run, r, dense, last=r is not entry)
        r = dense_block(run, r, end, last=True, onto=entry, normalized=block is blocks[-1])
    return resnet(run, [r], fusion.leave, onto=(x, weight))
