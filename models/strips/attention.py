"""The middle block's attention: every latent pixel looks at all of them, one head.

Queries go in chunks, keys and values are held whole, so memory grows with the pixels and time with
their square. Above `StripConfig.attention_keys` pixels, keys and values are averaged over f x f of
them, the smallest f that brings them under it. Queries keep their resolution, so there is no seam;
what is lost is how sharply a pixel can point at another. An average at the border that covers less
than f x f weighs less by as much: log(covered / f^2) is added to its scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import count
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.layers import PixelAttention
from models.strips.executor import Executor, Pass, Read
from models.strips.layers import Normalization, Span, Strip
from models.strips.maps import FeatureMap

# Scores of one call, where a kernel holds them all: 1 GiB in float32.
_SCORES = 2**28


def averaging(height: int, width: int, keys: int) -> int:
    """Smallest f of which ceil(height / f) * ceil(width / f) averages are at most `keys`."""
    return next(f for f in count(1) if -(-height // f) * -(-width // f) <= keys)


def attend(run: Executor, x: FeatureMap, attention: PixelAttention) -> FeatureMap:
    """`x` plus its attention; `x` is freed."""
    normalization = Normalization(attention.group_norm, [x])
    key, value, bias = _keys_and_values(run, x, attention, normalization)
    project = cast(nn.Linear, attention.to_out[0])
    chunk = max(1, _SCORES // len(key))

    def compute(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        pixels = _flatten(normalization(strips[0].rows))
        out = torch.empty_like(pixels)
        for top in range(0, len(pixels), chunk):
            query = attention.to_q(pixels[top : top + chunk])
            mixture = F.scaled_dot_product_attention(
                query[None, None], key[None, None], value[None, None], attn_mask=bias
            )
            out[top : top + chunk] = project(mixture[0, 0])
        rows = out.view(-1, x.width, x.channels).permute(2, 0, 1)[None]
        return [strips[0]._replace(rows=rows + strips[0].rows)]

    pixels = x.height * x.width
    return run.map(
        Pass(
            [Read(x)],
            [x.channels],
            compute,
            flops=4 * pixels * x.channels**2 + 4 * pixels * len(key) * x.channels,
            temporaries=4 * x.channels,
            resident=2 * key.nbytes,
        )
    )


def _keys_and_values(
    run: Executor, x: FeatureMap, attention: PixelAttention, normalization: Normalization
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both (keys, channels), and what is added to the scores of each key, if anything."""
    factor = averaging(x.height, x.width, run.store.config.attention_keys)
    height, width = -(-x.height // factor), -(-x.width // factor)
    shape = (height * width, x.channels)
    device, dtype = run.store.device, run.store.dtype
    key, value = (torch.empty(shape, device=device, dtype=dtype) for _ in range(2))

    def compute(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        rows = normalization(strips[0].rows)
        if factor > 1:
            # Projections are linear: those of the averages are the averages of those.
            rows = F.avg_pool2d(rows, factor, ceil_mode=True, count_include_pad=False)
        return [Strip(rows, span.top, height)]

    def write(top: int, rows: Tensor) -> None:
        pixels = _flatten(rows)
        part = slice(top * width, top * width + len(pixels))
        key[part], value[part] = attention.to_k(pixels), attention.to_v(pixels)

    run.emit(
        Pass(
            [Read(x, stride=Fraction(factor), last=False)],
            [x.channels],
            compute,
            flops=4 * height * width * x.channels**2,
            temporaries=factor**2 * x.channels + 3 * x.channels,
            resident=2 * key.nbytes,
        ),
        write,
    )
    if x.height % factor == 0 and x.width % factor == 0:
        return key, value, None
    rows, columns = (
        (torch.arange(n) + 1).mul(factor).clamp(max=side) - torch.arange(n) * factor
        for n, side in ((height, x.height), (width, x.width))
    )
    bias = (rows[:, None] * columns).flatten().div(factor**2).log()
    return key, value, bias.to(device, dtype)[None, None, None]


def _flatten(rows: Tensor) -> Tensor:
    """(1, channels, n, width) -> (n * width, channels)"""
    return rows[0].permute(1, 2, 0).flatten(0, 1)
