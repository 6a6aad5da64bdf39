"""The released autoencoder as passes, cut where a group norm needs a whole map."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.autoencoder import (
    RESIDUAL_SCALE,
    Autoencoder,
    DenseBlock,
    FusionLayer,
    Level,
    Middle,
    ResidualInResidual,
)
from models.networks.layers import Downsample, PixelAttention, ResnetBlock, Upsample
from models.strips.attention import attend
from models.strips.executor import Executor, Pass, Read, Source, Write
from models.strips.layers import (
    Convolution,
    Normalization,
    Span,
    Strip,
    convolve,
    count_flops,
    downsample,
    join,
    layers,
    upsample,
)
from models.strips.maps import FeatureMap

# What goes into a convolution, and the copy that is made of it: padded, or in the order of the
# convolution's library.
_BEFORE_CONV = 2


def run_encoder(
    run: Executor, autoencoder: Autoencoder, image: Source, *, features: bool, write: Write
) -> tuple[FeatureMap, ...]:
    """Passes from an image (3, H, W) to the moments (2 * latent_channels, H/8, W/8), which `write`
    takes, and, with `features`, to those that the decoder reads."""
    encoder = autoencoder.encoder
    x = run.map(_convolutions(image, [encoder.conv_in]))
    maps: list[FeatureMap] = []
    for level, block in enumerate(layers(encoder.down_blocks, Level)):
        for residual in layers(block.resnets, ResnetBlock):
            x = _resnet(run, [x], residual)
        keep = features and level in (1, 2)
        if keep:
            maps.append(x)
        if block.downsamplers is not None:
            (sampler,) = layers(block.downsamplers, Downsample)
            x = _downsample(run, x, sampler.conv, last=not keep)
    x = _middle(run, x, encoder.mid_block)
    head = [encoder.conv_out, autoencoder.quant_conv]
    run.emit(_convolutions(x, head, Normalization(encoder.conv_norm_out, [x])), write)
    return tuple(maps)


def run_decoder(
    run: Executor,
    autoencoder: Autoencoder,
    latent: Source,
    features: Sequence[FeatureMap] | None,
    fidelity: float,
    *,
    write: Write,
) -> None:
    """Passes from an unscaled latent (c, h, w) to the image (3, 8h, 8w), which `write` takes.
    Without features it is decoded plainly."""
    decoder = autoencoder.decoder
    weight = torch.tensor(fidelity, device=run.store.device, dtype=run.store.dtype)
    x = run.map(_convolutions(latent, [autoencoder.post_quant_conv, decoder.conv_in]))
    x = _middle(run, x, decoder.mid_block)
    for level, block in enumerate(layers(decoder.up_blocks, Level)):
        for residual in layers(block.resnets, ResnetBlock):
            x = _resnet(run, [x], residual)
        if features is not None and (fusion := decoder.fusion_at(level)):
            layer, i = fusion
            x = _fuse_features(run, features[i], x, layer, weight)
        if block.upsamplers is not None:
            (sampler,) = block.upsamplers
            x = _upsample(run, x, cast(Upsample, sampler))
    norm = Normalization(decoder.conv_norm_out, [x])
    run.emit(_convolutions(x, [decoder.conv_out], norm), write)


def _fuse_features(
    run: Executor, feature: FeatureMap, x: FeatureMap, fusion: FusionLayer, weight: Tensor
) -> FeatureMap:
    """`x + weight * fusion(feature, x)` (paper, eq. 5); `x` is freed, the feature stays."""
    r = _resnet(run, [feature, x], fusion.enter, last=False)
    blocks = layers(fusion.dense, ResidualInResidual)
    for block in blocks:
        base = r
        *inner, end = layers(block.blocks, DenseBlock)
        for dense in inner:
            r = _dense_block(run, r, dense, last=r is not base)
        r = _dense_block(run, r, end, base=base, with_statistics=block is blocks[-1])
    return _resnet(run, [r], fusion.leave, base=(x, weight))


def _middle(run: Executor, x: FeatureMap, block: Middle) -> FeatureMap:
    """The middle block, of encoder and decoder alike."""
    before, after = layers(block.resnets, ResnetBlock)
    (attention,) = layers(block.attentions, PixelAttention)
    x = _resnet(run, [x], before)
    x = attend(run, x, attention)
    return _resnet(run, [x], after)


def _convolutions(
    source: Source, convs: Sequence[Convolution], norm: Normalization | None = None
) -> Pass:
    """A network's first or last convolutions, between which nothing stands; after norm and SiLU, if
    there is one."""

    def compute(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        strip = strips[0] if norm is None else strips[0].apply(norm.silu)
        for conv in convs:
            strip = convolve(strip, conv)
        return [strip]

    return Pass(
        [Read(source, halo=sum(conv.kernel_size[0] // 2 for conv in convs))],
        [convs[-1].out_channels],
        compute,
        flops=count_flops(convs, source.height * source.width),
        temporaries=sum(conv.out_channels for conv in convs)
        + (0 if norm is None else _BEFORE_CONV * source.channels),
    )


def _resnet(
    run: Executor,
    inputs: Sequence[FeatureMap],
    block: ResnetBlock,
    *,
    last: bool = True,
    base: tuple[FeatureMap, Tensor] | None = None,
) -> FeatureMap:
    """A residual block over the inputs' joined channels, in two passes; `last` if no later one
    reads the inputs. With a `base`, a map and a scalar tensor of the network's dtype, the result is
    `map + scalar * block(inputs)`, and that map is freed."""
    pixels = inputs[0].height * inputs[0].width
    channels, out_channels = block.conv1.in_channels, block.conv1.out_channels
    norm1, shortcut = Normalization(block.norm1, inputs), block.conv_shortcut
    # The shortcut is in the same pass, so that the wider map need not wait for the block's end.
    convs = [block.conv1] if shortcut is None else [block.conv1, shortcut]

    def start(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        strip = join(strips)
        hidden = convolve(strip.apply(norm1.silu), block.conv1)
        return [hidden] if shortcut is None else [hidden, convolve(strip, shortcut)]

    hidden, *skips = run.maps(
        Pass(
            [Read(x, halo=1, last=last and shortcut is not None) for x in inputs],
            [out_channels] * len(convs),
            start,
            flops=count_flops(convs, pixels),
            temporaries=(_BEFORE_CONV + (len(inputs) > 1)) * channels + len(convs) * out_channels,
        )
    )
    norm2 = Normalization(block.norm2, [hidden])

    def finish(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        residual = convolve(strips[0].apply(norm2.silu), block.conv2).crop(span)
        out = residual.rows.add_(strips[1].rows)
        if base is not None:
            out = strips[2].rows + base[1] * out
        return [residual._replace(rows=out)]

    reads = [Read(hidden, halo=1), Read(skips[0]) if skips else Read(inputs[0], last=last)]
    if base is not None:
        reads.append(Read(base[0]))
    return run.map(
        Pass(
            reads,
            [out_channels],
            finish,
            flops=count_flops([block.conv2], pixels),
            temporaries=(_BEFORE_CONV + (2 if base else 1)) * out_channels,
        )
    )


def _dense_block(
    run: Executor,
    x: FeatureMap,
    block: DenseBlock,
    *,
    last: bool = True,
    base: FeatureMap | None = None,
    with_statistics: bool = False,
) -> FeatureMap:
    """A residual dense block in one pass, its five convolutions reading five rows beyond.

    Storing between them would mean less arithmetic by the halo's share, 4 rows a strip on
    average, but twice the traffic of the maps. `last` if no later pass reads `x`. With a `base`,
    which is freed, the result is `base + 0.2 * block(x)`.
    """
    convs = cast("list[Convolution]", list(block.convs))

    def compute(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        inputs = strips[0]
        for conv in convs[:-1]:
            growth = convolve(inputs, conv)
            F.leaky_relu(growth.rows, 0.2, inplace=True)
            inputs = join([inputs.crop(Span(growth.top, growth.bottom)), growth])
        out = convolve(inputs, convs[-1]).crop(span)
        rows = strips[0].crop(span).rows + RESIDUAL_SCALE * out.rows
        if base is not None:
            rows = strips[1].rows + RESIDUAL_SCALE * rows
        return [out._replace(rows=rows)]

    return run.map(
        Pass(
            [Read(x, halo=len(convs), last=last), *([] if base is None else [Read(base)])],
            [x.channels],
            compute,
            flops=count_flops(convs, x.height * x.width),
            temporaries=_BEFORE_CONV * convs[-1].in_channels + x.channels,
            with_statistics=with_statistics,
        )
    )


def _upsample(run: Executor, x: FeatureMap, layer: Upsample) -> FeatureMap:
    """Twice the size: nearest neighbours and a convolution, or what that was fused into."""
    conv = cast("Convolution", layer.conv if isinstance(layer, Upsample) else layer)
    return run.map(
        Pass(
            [Read(x, halo=1, stride=Fraction(1, 2))],
            [conv.out_channels],
            lambda span, strips: [upsample(strips[0], layer, span)],
            flops=count_flops([conv], 4 * x.height * x.width),
            temporaries=conv.out_channels + _BEFORE_CONV * x.channels,
        )
    )


def _downsample(run: Executor, x: FeatureMap, conv: nn.Conv2d, *, last: bool) -> FeatureMap:
    """Half the size by a strided convolution; `last` if no later pass reads `x`."""
    return run.map(
        Pass(
            [Read(x, halo=1, stride=Fraction(2), last=last)],
            [conv.out_channels],
            lambda span, strips: [downsample(strips[0], conv, span)],
            flops=count_flops([conv], (x.height // 2) * (x.width // 2)),
            temporaries=_BEFORE_CONV * 4 * x.channels + conv.out_channels,
        )
    )
