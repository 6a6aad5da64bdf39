"""The compact autoencoder as passes. It has no norms: a pass ends where halos grow too wide.

Eight convolutions in a row reach eight rows beyond a strip; they are one pass, and what lies
between two passes is a map at a quarter of the image's size. Rows near a cut are computed too,
wrongly, and given up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from models.networks.compact import (
    CompactAutoencoder,
    CompactDecoder,
    ResidualBlock,
    enlarge,
    fused_share,
    inverse_haar,
    run_layers,
)
from models.strips.executor import Executor, Pass, Read, Source, Write
from models.strips.layers import Convolution, Span, Strip, count_flops, layers
from models.strips.maps import FeatureMap

# Convolutions in one pass, and so the rows that are computed twice at either side of a strip.
_TOGETHER = 8


def run_encoder(
    run: Executor, autoencoder: CompactAutoencoder, image: Source, *, features: bool, write: Write
) -> tuple[FeatureMap, ...]:
    """Passes from an image (3, H, W) to the free channels (c - 12, H/8, W/8) of its latent, which
    `write` takes, and, with `features`, to those that the decoder reads."""
    encoder = autoencoder.encoder
    fine = [encoder.conv_in, *_convolutions(encoder.fine)]
    coarse = [*_convolutions(encoder.coarse), encoder.conv_out]
    feature = run.map(
        _apply(
            encoder.features,
            [Read(image, halo=4 * len(fine), stride=Fraction(4))],
            encoder.conv_in.out_channels + 3,
            flops=count_flops(fine, image.height * image.width // 16),
            temporaries=encoder.conv_in.in_channels + 4 * encoder.conv_in.out_channels,
            halo=len(fine),
        )
    )
    run.emit(
        _apply(
            encoder.free_channels,
            # Even, so that no strip begins between two strides.
            [Read(feature, halo=2 * len(coarse) + 2, stride=Fraction(2), last=not features)],
            encoder.conv_out.out_channels,
            flops=count_flops([encoder.down, *coarse], image.height * image.width // 64),
            temporaries=8 * encoder.down.in_channels + 4 * encoder.down.out_channels,
            halo=len(coarse) + 1,
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
    decoder, feature = autoencoder.decoder, None if features is None else features[0]
    fusion = decoder.fusion if feature is not None else None
    x, fused = _entry(run, latent, decoder), None
    if fusion is not None and feature is not None:
        start = run.map(
            _apply(
                fusion.start,
                [Read(feature, halo=1, last=False), Read(x, halo=1, last=False)],
                x.channels,
                flops=count_flops([fusion.picture_in, fusion.enter], x.height * x.width),
                temporaries=2 * feature.channels + 3 * x.channels,
                halo=1,
            )
        )
        fused = _convolve(run, start, layers(fusion.layers, nn.ModuleDict))
    x = _convolve(run, x, layers(decoder.layers, nn.ModuleDict))
    _head(run, latent, x, feature, fused, decoder, fidelity, write)


def _entry(run: Executor, latent: Source, decoder: CompactDecoder) -> FeatureMap:
    """The decoder's first map at a quarter of the image's size."""
    convs = [decoder.conv_in, *_convolutions(decoder.coarse)]
    pixels = latent.height * latent.width
    return run.map(
        _apply(
            lambda rows: decoder.entry(rows, inverse_haar(rows)),
            [Read(latent, halo=len(convs), stride=Fraction(1, 2))],
            decoder.picture_in.out_channels,
            flops=count_flops([*convs, decoder.rise], pixels)
            + count_flops([decoder.picture_in], 4 * pixels),
            temporaries=decoder.conv_in.out_channels + 5 * decoder.picture_in.out_channels,
            halo=2 * len(convs),
        )
    )


def _convolve(run: Executor, x: FeatureMap, stages: Sequence[nn.ModuleDict]) -> FeatureMap:
    """Convolutions, each with its activation; `x` is freed."""
    for first in range(0, len(stages), _TOGETHER):
        part = stages[first : first + _TOGETHER]
        x = run.map(
            _apply(
                partial(run_layers, part),
                [Read(x, halo=len(part))],
                x.channels,
                flops=count_flops(
                    [cast("Convolution", stage["conv"]) for stage in part], x.height * x.width
                ),
                temporaries=3 * x.channels,
                halo=len(part),
            )
        )
    return x


def _head(
    run: Executor,
    latent: Source,
    x: FeatureMap,
    feature: FeatureMap | None,
    fused: FeatureMap | None,
    decoder: CompactDecoder,
    fidelity: float,
    write: Write,
) -> None:
    """The image's rows: of the last map and the image that the latent holds; with fusion also of
    its last map and the image that the encoder has seen."""
    head, fusion, height = decoder.head, decoder.fusion, x.height
    convs = [head.conv1, head.conv2, head.conv3, head.conv4, head.conv5, head.conv_out]
    pixels, sizes = 16 * height * x.width, (16, 4, 4, 1, 1, 1)
    flops = sum(count_flops([c], pixels // s) for c, s in zip(convs, sizes, strict=True))
    share = fused_share(torch.tensor(fidelity, device=run.store.device, dtype=run.store.dtype))
    reads = [
        Read(x, halo=3, stride=Fraction(1, 4)),
        Read(latent, halo=2, stride=Fraction(1, 8)),
    ]
    if fusion is not None and feature is not None and fused is not None:
        reads += [
            Read(feature, halo=3, stride=Fraction(1, 4), last=False),
            Read(fused, halo=3, stride=Fraction(1, 4)),
        ]
        flops += count_flops([fusion.conv_out], pixels // 16)

    def compute(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        last, held, *ends = strips
        detail = Strip(head(last.rows), 4 * last.top, 4 * height).crop(span)
        small = Strip(enlarge(inverse_haar(held.rows)), 8 * held.top, 4 * height).crop(span)
        rows = small.rows + detail.rows
        if fusion is not None and ends:
            image = fusion.image(ends[0].rows, ends[1].rows)
            faithful = Strip(image, 4 * ends[0].top, 4 * height).crop(span)
            rows = rows + share * (faithful.rows - rows)
        return [detail._replace(rows=rows)]

    run.emit(
        Pass(
            reads,
            [3],
            compute,
            flops=flops,
            temporaries=head.conv4.in_channels + 2 * head.conv4.out_channels + 12,
            halo=12,
        ),
        write,
    )


def _apply(
    function: Callable[..., Tensor],
    reads: Sequence[Read],
    channels: int,
    *,
    flops: int,
    temporaries: int,
    halo: int,
) -> Pass:
    """A pass of one result, of so many channels: a function of whole maps, of rows instead."""
    source, stride = reads[0].source, reads[0].stride

    def compute(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        rows = function(*(strip.rows for strip in strips))
        return [Strip(rows, int(strips[0].top / stride), int(source.height / stride))]

    return Pass(
        reads,
        [channels],
        compute,
        flops=flops,
        temporaries=temporaries,
        halo=halo,
        with_statistics=False,
    )


def _convolutions(blocks: nn.Module) -> list[Convolution]:
    return [c for block in layers(blocks, ResidualBlock) for c in (block.conv1, block.conv2)]
