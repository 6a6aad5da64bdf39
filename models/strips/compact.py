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
            encoder.conv_in.out_channels,
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
    decoder = autoencoder.decoder
    fusion = decoder.fusion if features is not None else None
    x = _entry(run, latent, decoder)
    stages = layers(decoder.layers, nn.ModuleDict)
    x, ends = _convolve(run, x, stages[: decoder.shared_layers]), []
    if fusion is not None and features is not None:
        residual = run.map(
            _apply(
                fusion.start,
                [Read(features[0], halo=1, last=False), Read(x, halo=1, last=False)],
                fusion.enter.out_channels,
                flops=count_flops([fusion.enter], x.height * x.width),
                temporaries=2 * fusion.enter.in_channels + 2 * fusion.enter.out_channels,
                halo=1,
            )
        )
        ends = [_convolve(run, residual, layers(fusion.layers, nn.ModuleDict))]
    ends.insert(0, _convolve(run, x, stages[decoder.shared_layers :]))
    _head(run, latent, ends, decoder, fidelity, write)


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
    ends: Sequence[FeatureMap],
    decoder: CompactDecoder,
    fidelity: float,
    write: Write,
) -> None:
    """The image's rows, of the last maps, one for each end of the fidelity weight, and of the image
    that the latent holds."""
    head, height = decoder.head, ends[0].height
    convs = [head.conv1, head.conv2, head.conv3, head.conv4, head.conv5, head.conv_out]
    pixels, sizes = 16 * height * ends[0].width, (16, 4, 4, 1, 1, 1)
    share = fused_share(torch.tensor(fidelity, device=run.store.device, dtype=run.store.dtype))
    draw = head if len(ends) == 1 else decoder.head_at(share)

    def compute(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        *features, held = strips
        x = features[0].rows
        if len(features) == 2:
            x = x + share * (features[1].rows - x)
        detail = Strip(draw(x), 4 * features[0].top, 4 * height).crop(span)
        small = Strip(enlarge(inverse_haar(held.rows)), 8 * held.top, 4 * height).crop(span)
        return [detail._replace(rows=small.rows + detail.rows)]

    run.emit(
        Pass(
            [
                *(Read(x, halo=3, stride=Fraction(1, 4)) for x in ends),
                Read(latent, halo=2, stride=Fraction(1, 8)),
            ],
            [3],
            compute,
            flops=sum(count_flops([c], pixels // s) for c, s in zip(convs, sizes, strict=True)),
            temporaries=head.conv4.in_channels + 2 * head.conv4.out_channels + 9,
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
