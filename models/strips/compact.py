"""The compact autoencoder as passes. It has no norms: a pass ends where halos grow too wide.

Eight convolutions in a row reach eight rows beyond a strip; they are one pass, and what lies
between two passes is a map at a quarter of the image's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from models.networks.compact import (
    CompactAutoencoder,
    CompactDecoder,
    CompactFusion,
    CompactHead,
    ResidualBlock,
    enlarge,
    inverse_haar,
    repeat,
)
from models.strips.executor import Executor, Pass, Read, Source, Write
from models.strips.layers import (
    Convolution,
    Span,
    Strip,
    convolve,
    count_flops,
    downsample,
    join,
    layers,
)
from models.strips.maps import FeatureMap

# Convolutions in one pass, and so the rows that are computed twice at either side of a strip.
_TOGETHER = 8

_leaky_relu = partial(F.leaky_relu, negative_slope=0.2)


def run_encoder(
    run: Executor, autoencoder: CompactAutoencoder, image: Source, *, features: bool, write: Write
) -> tuple[FeatureMap, ...]:
    """Passes from an image (3, H, W) to the free channels (c - 12, H/8, W/8) of its latent, which
    `write` takes, and, with `features`, to those that the decoder reads."""
    encoder = autoencoder.encoder
    fine, coarse = layers(encoder.fine, ResidualBlock), layers(encoder.coarse, ResidualBlock)
    convs = [encoder.conv_in, *(c for b in fine for c in (b.conv1, b.conv2))]
    height, width = image.height // 4, image.width // 4

    def start(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        pixels = strips[0]
        strip = Strip(F.pixel_unshuffle(pixels.rows, 4), pixels.top // 4, height)
        return [_residuals(convolve(strip, encoder.conv_in), fine)]

    feature = run.map(
        Pass(
            [Read(image, halo=4 * len(convs), stride=Fraction(4))],
            [encoder.conv_in.out_channels],
            start,
            flops=count_flops(convs, height * width),
            temporaries=encoder.conv_in.in_channels + 4 * encoder.conv_in.out_channels,
            halo=len(convs),
            with_statistics=False,
        )
    )
    after = [*(c for b in coarse for c in (b.conv1, b.conv2)), encoder.conv_out]

    def finish(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        wide = Span(max(span.top - len(after), 0), min(span.bottom + len(after), height // 2))
        strip = _residuals(downsample(strips[0], encoder.down, wide), coarse)
        return [convolve(strip.apply(F.silu), encoder.conv_out)]

    run.emit(
        Pass(
            [Read(feature, halo=2 * len(after) + 1, stride=Fraction(2), last=not features)],
            [encoder.conv_out.out_channels],
            finish,
            flops=count_flops([encoder.down, *after], (height // 2) * (width // 2)),
            temporaries=8 * encoder.down.in_channels + 4 * encoder.down.out_channels,
            halo=len(after),
        ),
        write,
    )
    return (feature,) if features else ()


def run_decoder(
    run: Executor,
    autoencoder: CompactAutoencoder,
    latent: Source,
    features: Sequence[FeatureMap] | None,
    fidelity: float,
    *,
    write: Write,
) -> None:
    """Passes from an unscaled latent (c, h, w) to the image (3, 8h, 8w), which `write` takes.
    Without features it is decoded plainly."""
    decoder = autoencoder.decoder
    fusion = decoder.fusion if features is not None else None
    x = _entry(run, latent, decoder)
    stages = layers(decoder.layers, nn.ModuleDict)
    x = _convolve(run, x, stages[: decoder.shared_layers])
    if fusion is None or features is None:
        x = _convolve(run, x, stages[decoder.shared_layers :])
    else:
        residual = _fusion_entry(run, features[0], x, fusion)
        x = _convolve(run, x, stages[decoder.shared_layers :])
        residual = _convolve(run, residual, layers(fusion.layers, nn.ModuleDict))
        x = _interpolate(run, x, residual, fidelity)
    _head(run, latent, x, decoder.head, write)


def _entry(run: Executor, latent: Source, decoder: CompactDecoder) -> FeatureMap:
    """The decoder's first map at a quarter of the image's size."""
    coarse = layers(decoder.coarse, ResidualBlock)
    convs = [decoder.conv_in, *(c for b in coarse for c in (b.conv1, b.conv2))]
    height, pixels = 2 * latent.height, latent.height * latent.width

    def compute(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        strip = strips[0]
        small = Strip(inverse_haar(strip.rows) * 0.5 + 0.5, 2 * strip.top, height)
        deep = _residuals(convolve(strip, decoder.conv_in), coarse)
        rows = F.pixel_shuffle(F.conv2d(deep.rows, decoder.rise.weight, decoder.rise.bias), 2)
        rise = Strip(rows, 2 * deep.top, height).crop(span)
        entry = convolve(small, decoder.picture_in).crop(span)
        return [rise._replace(rows=decoder.activation(entry.rows + rise.rows))]

    return run.map(
        Pass(
            [Read(latent, halo=len(convs), stride=Fraction(1, 2))],
            [decoder.picture_in.out_channels],
            compute,
            flops=count_flops([*convs, decoder.rise], pixels)
            + count_flops([decoder.picture_in], 4 * pixels),
            temporaries=decoder.conv_in.out_channels + 5 * decoder.picture_in.out_channels,
            halo=2 * len(convs),
            with_statistics=False,
        )
    )


def _convolve(run: Executor, x: FeatureMap, stages: Sequence[nn.ModuleDict]) -> FeatureMap:
    """Convolutions, each with its activation; `x` is freed."""
    for first in range(0, len(stages), _TOGETHER):
        x = _convolve_together(run, x, stages[first : first + _TOGETHER])
    return x


def _convolve_together(run: Executor, x: FeatureMap, stages: Sequence[nn.ModuleDict]) -> FeatureMap:
    convs = [cast("Convolution", stage["conv"]) for stage in stages]

    def compute(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        strip = strips[0]
        for stage, conv in zip(stages, convs, strict=True):
            strip = convolve(strip, conv).apply(stage["act"])
        return [strip]

    return run.map(
        Pass(
            [Read(x, halo=len(convs))],
            [convs[-1].out_channels],
            compute,
            flops=count_flops(convs, x.height * x.width),
            temporaries=3 * x.channels,
            halo=len(convs),
            with_statistics=False,
        )
    )


def _fusion_entry(
    run: Executor, feature: FeatureMap, x: FeatureMap, fusion: CompactFusion
) -> FeatureMap:
    """What the fusion's layers read; `x` and the feature stay."""

    def compute(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        residual = convolve(join(strips), fusion.enter).crop(span)
        return [residual._replace(rows=strips[1].crop(span).rows + residual.rows)]

    return run.map(
        Pass(
            [Read(feature, halo=1, last=False), Read(x, halo=1, last=False)],
            [fusion.enter.out_channels],
            compute,
            flops=count_flops([fusion.enter], x.height * x.width),
            temporaries=2 * fusion.enter.in_channels + fusion.enter.out_channels,
            halo=1,
            with_statistics=False,
        )
    )


def _interpolate(run: Executor, x: FeatureMap, other: FeatureMap, fidelity: float) -> FeatureMap:
    """`x + fidelity * (other - x)`; both are freed."""
    weight = torch.tensor(fidelity, device=run.store.device, dtype=run.store.dtype)
    return run.map(
        Pass(
            [Read(x), Read(other)],
            [x.channels],
            lambda span, strips: [
                strips[0]._replace(rows=strips[0].rows + weight * (strips[1].rows - strips[0].rows))
            ],
            flops=0,
            temporaries=2 * x.channels,
            with_statistics=False,
        )
    )


def _head(run: Executor, latent: Source, x: FeatureMap, head: CompactHead, write: Write) -> None:
    """The image's rows, of the last map and of the image that the latent holds."""
    convs = [head.conv1, head.conv2, head.conv3, head.conv4, head.conv5]
    pixels = 16 * x.height * x.width
    sizes = (16, 4, 4, 1, 1)

    def compute(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        strip = convolve(strips[0], convs[0]).apply(_leaky_relu)
        strip = convolve(_repeat(strip), convs[1]).apply(_leaky_relu)
        strip = convolve(strip, convs[2]).apply(_leaky_relu)
        strip = convolve(_repeat(strip), convs[3]).apply(_leaky_relu)
        strip = convolve(strip, convs[4]).apply(_leaky_relu)
        strip = convolve(strip, head.conv_out).crop(span)
        small = Strip(inverse_haar(strips[1].rows), 2 * strips[1].top, x.height)
        return [strip._replace(rows=strip.rows + _enlarge(small).crop(span).rows)]

    run.emit(
        Pass(
            # A row for each convolution at its size, in rows of the map.
            [Read(x, halo=3, stride=Fraction(1, 4)), Read(latent, halo=2, stride=Fraction(1, 8))],
            [3],
            compute,
            flops=sum(count_flops([c], pixels // s) for c, s in zip(convs, sizes, strict=True))
            + count_flops([head.conv_out], pixels),
            temporaries=convs[3].in_channels + 2 * convs[3].out_channels + 9,
            halo=12,
        ),
        write,
    )


def _residuals(strip: Strip, blocks: Sequence[ResidualBlock]) -> Strip:
    for block in blocks:
        residual = convolve(strip.apply(F.silu), block.conv1)
        residual = convolve(residual.apply(F.silu), block.conv2)
        skip = strip.crop(Span(residual.top, residual.bottom))
        strip = residual._replace(rows=skip.rows + residual.rows)
    return strip


def _repeat(strip: Strip) -> Strip:
    return Strip(repeat(strip.rows), 2 * strip.top, 2 * strip.height)


def _enlarge(strip: Strip) -> Strip:
    """Four times the size; two rows beside a cut are given up, as they read what is beyond."""
    above, below = 2 * int(strip.top > 0), 2 * int(strip.bottom < strip.height)
    rows = enlarge(strip.rows)
    rows = rows[:, :, above : rows.shape[2] - below]
    return Strip(rows, 4 * strip.top + above, 4 * strip.height)
