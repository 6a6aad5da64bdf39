"""The compact autoencoder in passes. It has no norms: a pass ends where halos grow too wide.

Eight convolutions in a row reach eight rows beyond a strip; they are one pass, and what lies
between two passes is a map at a quarter of the image's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from models.networks.compact import (
    CompactAutoencoder,
    CompactFusion,
    CompactHead,
    ResidualBlock,
    enlarge,
    inverse_haar,
    repeat,
)
from models.strips.blocks import conv_flops, layers
from models.strips.executor import Executor, Pass, Read, Result, Source, Write
from models.strips.store import FeatureMap
from models.strips.strips import Convolution, Span, Strip, convolve, downsample, join

__all__ = ["run_compact_decoder", "run_compact_encoder"]

# Convolutions in one pass, and so the rows that are computed twice at either side of a strip.
_TOGETHER = 8


def run_compact_encoder(
    run: Executor, autoencoder: CompactAutoencoder, image: Source, *, features: bool, write: Write
) -> tuple[FeatureMap, ...]:
    """Passes from an image to the free channels of its latent, and to what the decoder will read.

    Args:
        run: runs them.
        autoencoder: whose encoder.
        image: (3, H, W)
        features: whether to keep them.
        write: takes the first row and rows (1, c - 12, n, W/8) of the free channels at a time.
    """
    encoder = autoencoder.encoder
    fine = layers(encoder.fine, ResidualBlock)
    convs = [encoder.conv_in, *(c for b in fine for c in (b.conv1, b.conv2))]
    height, width = image.height // 4, image.width // 4

    def start(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        pixels = strips[0]
        strip = Strip(F.pixel_unshuffle(pixels.rows, 4), pixels.top // 4, height)
        strip = convolve(strip, cast("Convolution", encoder.conv_in))
        for block in fine:
            strip = _residual(strip, block)
        return [strip]

    feature = run.map(
        Pass(
            [Result(encoder.conv_in.out_channels, normalized=False)],
            height,
            width,
            [Read(image, halo=4 * len(convs), stride=Fraction(4))],
            start,
            flops=sum(conv_flops(conv, height * width) for conv in convs),
            temporaries=encoder.conv_in.in_channels + 4 * encoder.conv_in.out_channels,
            halo=len(convs),
        )
    )
    coarse = layers(encoder.coarse, ResidualBlock)
    after = [*(c for b in coarse for c in (b.conv1, b.conv2)), encoder.conv_out]
    height, width = height // 2, width // 2

    def finish(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        wide = Span(max(span.top - len(after), 0), min(span.bottom + len(after), height))
        strip = downsample(strips[0], encoder.down, wide)
        for block in coarse:
            strip = _residual(strip, block)
        return [convolve(_activated(strip), cast("Convolution", encoder.conv_out))]

    run.emit(
        Pass(
            [Result(encoder.conv_out.out_channels, normalized=False)],
            height,
            width,
            [Read(feature, halo=2 * len(after) + 1, stride=Fraction(2), last=not features)],
            finish,
            flops=sum(conv_flops(conv, height * width) for conv in (encoder.down, *after)),
            temporaries=8 * encoder.down.in_channels + 4 * encoder.down.out_channels,
            halo=len(after),
        ),
        write,
    )
    return (feature,) if features else ()


def run_compact_decoder(
    run: Executor,
    autoencoder: CompactAutoencoder,
    latent: Source,
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
        features: the encoder's, or None to decode plainly.
        fidelity: weight of the fusion in [0, 1].
        free_features: whether this is the last use of the features.
        write: takes the image's first row and rows (1, 3, n, W) at a time.
    """
    decoder = autoencoder.decoder
    fusion = decoder.fusion if features is not None else None
    x = _entered(run, autoencoder, latent)
    stages = layers(decoder.layers, nn.ModuleDict)
    x = _convolved(run, x, stages[: decoder.shared_layers])
    if fusion is None or features is None:
        x = _convolved(run, x, stages[decoder.shared_layers :])
    else:
        fused = _fusion_entered(run, features[0], x, fusion, free=free_features)
        x = _convolved(run, x, stages[decoder.shared_layers :])
        fused = _convolved(run, fused, layers(fusion.layers, nn.ModuleDict))
        x = _between(run, x, fused, fidelity)
    _headed(run, latent, x, decoder.head, write)


def _entered(run: Executor, autoencoder: CompactAutoencoder, latent: Source) -> FeatureMap:
    """The decoder's first map at a quarter of the image's size."""
    decoder = autoencoder.decoder
    coarse = layers(decoder.coarse, ResidualBlock)
    convs = [decoder.conv_in, *(c for b in coarse for c in (b.conv1, b.conv2))]
    height, width = 2 * latent.height, 2 * latent.width

    def compute(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        cells = strips[0]
        small = Strip(inverse_haar(cells.rows) * 0.5 + 0.5, 2 * cells.top, height)
        deep = convolve(cells, cast("Convolution", decoder.conv_in))
        for block in coarse:
            deep = _residual(deep, block)
        rows = F.pixel_shuffle(F.conv2d(deep.rows, decoder.rise.weight, decoder.rise.bias), 2)
        risen = Strip(rows, 2 * deep.top, height).crop(span)
        entering = convolve(small, cast("Convolution", decoder.picture_in)).crop(span)
        return [risen._replace(rows=decoder.activation(entering.rows + risen.rows))]

    cells = latent.height * latent.width
    flops = sum(conv_flops(conv, cells) for conv in (*convs, decoder.rise))
    return run.map(
        Pass(
            [Result(decoder.picture_in.out_channels, normalized=False)],
            height,
            width,
            [Read(latent, halo=len(convs), stride=Fraction(1, 2))],
            compute,
            flops=flops + conv_flops(cast("Convolution", decoder.picture_in), 4 * cells),
            temporaries=decoder.conv_in.out_channels + 5 * decoder.picture_in.out_channels,
            halo=2 * len(convs),
        )
    )


def _convolved(run: Executor, x: FeatureMap, stages: Sequence[nn.ModuleDict]) -> FeatureMap:
    """Convolutions, each with its activation; `x` is freed."""
    for first in range(0, len(stages), _TOGETHER):
        x = _together(run, x, stages[first : first + _TOGETHER])
    return x


def _together(run: Executor, x: FeatureMap, stages: Sequence[nn.ModuleDict]) -> FeatureMap:
    convs = [cast("Convolution", stage["conv"]) for stage in stages]

    def compute(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        strip = strips[0]
        for stage, conv in zip(stages, convs, strict=True):
            made = convolve(strip, conv)
            strip = made._replace(rows=stage["act"](made.rows))
        return [strip]

    return run.map(
        Pass(
            [Result(convs[-1].out_channels, normalized=False)],
            x.height,
            x.width,
            [Read(x, halo=len(convs))],
            compute,
            flops=sum(conv_flops(conv, x.height * x.width) for conv in convs),
            temporaries=3 * x.channels,
            halo=len(convs),
        )
    )


def _fusion_entered(
    run: Executor, feature: FeatureMap, x: FeatureMap, fusion: CompactFusion, *, free: bool
) -> FeatureMap:
    """What the fusion's layers read; `x` stays, and the feature unless `free`."""
    enter = cast("Convolution", fusion.enter)

    def compute(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        told = convolve(join(strips), enter).crop(span)
        return [told._replace(rows=strips[1].crop(span).rows + told.rows)]

    return run.map(
        Pass(
            [Result(enter.out_channels, normalized=False)],
            x.height,
            x.width,
            [Read(feature, halo=1, last=free), Read(x, halo=1, last=False)],
            compute,
            flops=conv_flops(enter, x.height * x.width),
            temporaries=2 * enter.in_channels + enter.out_channels,
            halo=1,
        )
    )


def _between(run: Executor, x: FeatureMap, fused: FeatureMap, fidelity: float) -> FeatureMap:
    """`x + fidelity * (fused - x)`; both are freed."""
    weight = torch.tensor(fidelity, device=run.store.device, dtype=run.store.dtype)
    return run.map(
        Pass(
            [Result(x.channels, normalized=False)],
            x.height,
            x.width,
            [Read(x), Read(fused)],
            lambda span, strips: [
                strips[0]._replace(rows=strips[0].rows + weight * (strips[1].rows - strips[0].rows))
            ],
            flops=0,
            temporaries=2 * x.channels,
            halo=0,
        )
    )


def _headed(run: Executor, latent: Source, x: FeatureMap, head: CompactHead, write: Write) -> None:
    """The image's rows, of the last map and of the image that the latent holds."""
    convs = [
        cast("Convolution", conv)
        for conv in (head.conv1, head.conv2, head.conv3, head.conv4, head.conv5)
    ]
    last = cast("Convolution", head.conv_out)
    height, width = 4 * x.height, 4 * x.width

    def activated(strip: Strip, conv: Convolution) -> Strip:
        made = convolve(strip, conv)
        return made._replace(rows=F.leaky_relu(made.rows, 0.2))

    def compute(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        strip = activated(strips[0], convs[0])
        strip = activated(_repeat(strip), convs[1])
        strip = activated(strip, convs[2])
        strip = activated(_repeat(strip), convs[3])
        strip = convolve(activated(strip, convs[4]), last).crop(span)
        cells = strips[1]
        small = Strip(inverse_haar(cells.rows), 2 * cells.top, x.height)
        return [strip._replace(rows=strip.rows + _enlarge(small).crop(span).rows)]

    area = height * width
    sizes = (16, 4, 4, 1, 1)
    run.emit(
        Pass(
            [Result(3, normalized=False)],
            height,
            width,
            # A row for each convolution at its size, in rows of the map.
            [Read(x, halo=3, stride=Fraction(1, 4)), Read(latent, halo=2, stride=Fraction(1, 8))],
            compute,
            flops=sum(conv_flops(c, area // s) for c, s in zip(convs, sizes, strict=True))
            + conv_flops(last, area),
            temporaries=convs[3].in_channels + 2 * convs[3].out_channels + 9,
            halo=12,
        ),
        write,
    )


def _activated(strip: Strip) -> Strip:
    return strip._replace(rows=F.silu(strip.rows))


def _residual(strip: Strip, block: ResidualBlock) -> Strip:
    made = convolve(_activated(strip), cast("Convolution", block.conv1))
    made = convolve(_activated(made), cast("Convolution", block.conv2))
    return made._replace(rows=strip.crop(Span(made.top, made.bottom)).rows + made.rows)


def _repeat(strip: Strip) -> Strip:
    return Strip(repeat(strip.rows), 2 * strip.top, 2 * strip.height)


def _enlarge(strip: Strip) -> Strip:
    """Four times the size; two rows beside a cut are given up, as they read what is beyond."""
    above, below = 2 * int(strip.top > 0), 2 * int(strip.bottom < strip.height)
    rows = enlarge(strip.rows)
    kept = rows[:, :, above : rows.shape[2] - below]
    return Strip(kept, 4 * strip.top + above, 4 * strip.height)
