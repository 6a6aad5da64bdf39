"""The autoencoder's building blocks as passes, cut where a group norm needs a whole map."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TypeVar, cast

from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from models.fusing.upsampling import PhaseUpsample
from models.fusing.winograd import WinogradConv2d
from models.networks.autoencoder import RESIDUAL_SCALE, DenseBlock
from models.strips.executor import Executor, Pass, Read, Result, Source, Write
from models.strips.statistics import Normalization
from models.strips.store import FeatureMap
from models.strips.strips import Convolution, Span, Strip, convolve, downsample, join, upsample

__all__ = [
    "conv_flops",
    "dense_block",
    "downsampled",
    "entered",
    "head",
    "layers",
    "resnet",
    "upsampled",
]


# What goes into a convolution, and the copy that is made of it: padded, or in the order of the
# convolution's library.
_BEFORE_CONV = 2

_Layer = TypeVar("_Layer", bound=nn.Module)


def layers(modules: nn.Module | nn.Sequential, kind: type[_Layer]) -> list[_Layer]:
    """The members of a list of layers, whose type torch does not know."""
    found = list(modules.children())
    assert all(isinstance(layer, kind) for layer in found), f"not all of {found} are {kind}"
    return cast("list[_Layer]", found)


def conv_flops(conv: Convolution | PhaseUpsample, cells: int) -> int:
    """Of a convolution with so many cells of output; a product and a sum are two. One that was
    taken to another basis is counted as what it was: others are weighed against it."""
    if isinstance(conv, WinogradConv2d):
        return 2 * 9 * conv.in_channels * conv.out_channels * cells
    return 2 * conv.weight.numel() * cells


def entered(run: Executor, source: Source, convs: Sequence[Convolution]) -> FeatureMap:
    """A source through a network's first convolutions, between which nothing stands."""

    def compute(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        strip = strips[0]
        for conv in convs:
            strip = convolve(strip, conv)
        return [strip]

    cells = source.height * source.width
    return run.map(
        Pass(
            [Result(convs[-1].out_channels)],
            source.height,
            source.width,
            [Read(source, halo=sum(conv.kernel_size[0] // 2 for conv in convs))],
            compute,
            flops=sum(conv_flops(conv, cells) for conv in convs),
            temporaries=sum(conv.out_channels for conv in convs),
        )
    )


def resnet(
    run: Executor,
    inputs: Sequence[FeatureMap],
    block: ResnetBlock2D,
    *,
    last: Sequence[bool] | None = None,
    onto: tuple[FeatureMap, Tensor] | None = None,
) -> FeatureMap:
    """A residual block over the inputs' joined channels: two passes.

    Args:
        run: runs them.
        inputs: maps of one size.
        block: the layers.
        last: which of the inputs nobody needs afterwards; all, if not given.
        onto: a map and a scalar tensor of the network's dtype; the result is
            `map + scalar * block(inputs)` instead, and the map is freed.
    """
    height, width = inputs[0].height, inputs[0].width
    cells = height * width
    last = [True] * len(inputs) if last is None else last
    entering, leaving = block.conv1.in_channels, block.conv1.out_channels
    first = Normalization(block.norm1, [x.statistics for x in inputs])
    shortcut = block.conv_shortcut

    def start(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        joined = join(strips)
        hidden = convolve(_activated(first, joined), block.conv1)
        return [hidden] if shortcut is None else [hidden, convolve(joined, shortcut)]

    if shortcut is None:
        hidden = run.map(
            Pass(
                [Result(leaving)],
                height,
                width,
                [Read(x, halo=1, last=False) for x in inputs],
                start,
                flops=conv_flops(block.conv1, cells),
                temporaries=_BEFORE_CONV * entering + leaving,
            )
        )
        skip, skipped_last = inputs[0], last[0]
    else:
        # In the same pass, so that the wider map need not wait for the end of the block.
        hidden, skip = run.maps(
            Pass(
                [Result(leaving), Result(leaving, normalized=False)],
                height,
                width,
                [Read(x, halo=1, last=end) for x, end in zip(inputs, last, strict=True)],
                start,
                flops=conv_flops(block.conv1, cells) + conv_flops(shortcut, cells),
                temporaries=(_BEFORE_CONV + (len(inputs) > 1)) * entering + 2 * leaving,
            )
        )
        skipped_last = True
    second = Normalization(block.norm2, [hidden.statistics])

    def finish(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        residual = convolve(_activated(second, strips[0]), block.conv2).crop(span)
        out = residual.rows.add_(strips[1].rows)
        if onto is not None:
            out = strips[2].rows + onto[1] * out
        return [residual._replace(rows=out)]

    return run.map(
        Pass(
            [Result(leaving)],
            height,
            width,
            [
                Read(hidden, halo=1),
                Read(skip, last=skipped_last),
                *([Read(onto[0])] if onto else []),
            ],
            finish,
            flops=conv_flops(block.conv2, cells),
            temporaries=(_BEFORE_CONV + (2 if onto else 1)) * leaving,
        )
    )


def dense_block(
    run: Executor,
    x: FeatureMap,
    block: DenseBlock,
    *,
    last: bool,
    onto: FeatureMap | None = None,
    normalized: bool = False,
) -> FeatureMap:
    """A residual dense block in one pass, its five convolutions reading five rows beyond.

    Storing between them would mean less arithmetic by the halo's share, 4 rows a strip on
    average, but twice the traffic of the maps.

    Args:
        run: runs it.
        x: what it reads.
        block: the layers.
        last: whether nobody needs `x` afterwards.
        onto: the result is `onto + 0.2 * block(x)` instead; `onto` is freed.
        normalized: whether a group norm reads the result.
    """
    convs = cast("list[Convolution]", list(block.convs))

    def compute(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        seen = strips[0]
        for conv in convs[:-1]:
            new = convolve(seen, conv)
            F.leaky_relu(new.rows, 0.2, inplace=True)
            seen = join([seen.crop(Span(new.top, new.bottom)), new])
        out = convolve(seen, convs[-1]).crop(span)
        rows = strips[0].crop(span).rows + RESIDUAL_SCALE * out.rows
        if onto is not None:
            rows = strips[1].rows + RESIDUAL_SCALE * rows
        return [out._replace(rows=rows)]

    reads = [Read(x, halo=len(convs), last=last)]
    if onto is not None:
        reads.append(Read(onto))
    return run.map(
        Pass(
            [Result(x.channels, normalized)],
            x.height,
            x.width,
            reads,
            compute,
            flops=sum(conv_flops(conv, x.height * x.width) for conv in convs),
            temporaries=_BEFORE_CONV * convs[-1].in_channels + x.channels,
        )
    )


def upsampled(run: Executor, x: FeatureMap, sampler: Convolution | PhaseUpsample) -> FeatureMap:
    """Twice the size: nearest neighbours and a convolution, or what that was fused into."""
    height, width = 2 * x.height, 2 * x.width
    fused = isinstance(sampler, PhaseUpsample)
    return run.map(
        Pass(
            [Result(sampler.out_channels)],
            height,
            width,
            [Read(x, halo=1, stride=Fraction(1, 2))],
            lambda span, strips: [upsample(strips[0], sampler, span)],
            flops=conv_flops(sampler, x.height * x.width if fused else height * width),
            # Unfused the doubled map is rearranged, fused the result.
            temporaries=sampler.out_channels
            + (2 * sampler.out_channels if fused else _BEFORE_CONV * x.channels),
        )
    )


def downsampled(run: Executor, x: FeatureMap, conv: nn.Conv2d, *, last: bool) -> FeatureMap:
    """Half the size by a strided convolution; `last` if nobody needs `x` afterwards."""
    height, width = x.height // 2, x.width // 2
    return run.map(
        Pass(
            [Result(conv.out_channels)],
            height,
            width,
            [Read(x, halo=1, stride=Fraction(2), last=last)],
            lambda span, strips: [downsample(strips[0], conv, span)],
            flops=conv_flops(conv, height * width),
            temporaries=_BEFORE_CONV * 4 * x.channels + conv.out_channels,
        )
    )


def head(
    run: Executor,
    x: FeatureMap,
    norm: nn.GroupNorm,
    convs: Sequence[Convolution],
    write: Write,
) -> None:
    """A network's end, norm, SiLU and convolutions, its rows handed to `write`."""
    normalization = Normalization(norm, [x.statistics])

    def compute(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        strip = _activated(normalization, strips[0])
        for conv in convs:
            strip = convolve(strip, conv)
        return [strip]

    run.emit(
        Pass(
            [Result(convs[-1].out_channels)],
            x.height,
            x.width,
            [Read(x, halo=1)],
            compute,
            flops=sum(conv_flops(conv, x.height * x.width) for conv in convs),
            temporaries=_BEFORE_CONV * x.channels + sum(conv.out_channels for conv in convs),
        ),
        write,
    )


def _activated(normalization: Normalization, strip: Strip) -> Strip:
    return strip._replace(rows=normalization.activated(strip.rows))
