"""The middle block's attention: every latent cell looks at all of them, one head.

Queries go in chunks, keys and values are held whole, so memory grows with the cells and time with
their square. Above `attention_keys` cells, keys and values are averaged over f x f cells, the
smallest f that brings them under it. Queries keep their resolution, so there is no seam; what is
lost is how sharply a cell can point at another. A cell of the border that covers less than
f x f weighs less by as much: log(covered / f^2) is added to its scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import count
from typing import cast

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from models.strips.executor import Executor, Pass, Read, Result
from models.strips.statistics import Normalization
from models.strips.store import FeatureMap
from models.strips.strips import Span, Strip

__all__ = ["attended", "averaging"]

# Scores of one call, where a kernel holds them all: 1 GiB in float32.
_SCORES = 2**28


def averaging(height: int, width: int, keys: int) -> int:
    """Smallest f of which ceil(height / f) * ceil(width / f) averages are at most `keys`."""
    return next(f for f in count(1) if -(-height // f) * -(-width // f) <= keys)


def attended(run: Executor, x: FeatureMap, attention: Attention, keys: int) -> FeatureMap:
    """`x` plus what each of its cells takes from all; `x` is freed."""
    factor = averaging(x.height, x.width, keys)
    normalization = Normalization(_norm(attention), [x.statistics])
    key, value, bias = _keys_and_values(run, x, attention, normalization, factor)
    project = cast(nn.Linear, attention.to_out[0])
    chunk = max(1, _SCORES // len(key))

    def compute(span: Span, strips: Sequence[Strip]) -> Sequence[Strip]:
        cells = _cells(normalization(strips[0].rows))
        out = torch.empty_like(cells)
        for top in range(0, len(cells), chunk):
            query = attention.to_q(cells[top : top + chunk])
            taken = F.scaled_dot_product_attention(
                query[None, None], key[None, None], value[None, None], attn_mask=bias
            )
            out[top : top + chunk] = project(taken[0, 0])
        return [strips[0]._replace(rows=_rows(out, x.width) + strips[0].rows)]

    cells = x.height * x.width
    linear = 4 * cells * x.channels**2
    return run.map(
        Pass(
            [Result(x.channels)],
            x.height,
            x.width,
            [Read(x)],
            compute,
            flops=linear + 4 * cells * len(key) * x.channels,
            temporaries=4 * x.channels,
            resident=2 * key.nbytes,
        )
    )


def _keys_and_values(
    run: Executor,
    x: FeatureMap,
    attention: Attention,
    normalization: Normalization,
    factor: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both (keys, channels), and what is added to the scores of each key, if anything."""
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
        cells = _cells(rows)
        at = slice(top * width, top * width + len(cells))
        key[at], value[at] = attention.to_k(cells), attention.to_v(cells)

    run.emit(
        Pass(
            [Result(x.channels)],
            height,
            width,
            [Read(x, stride=Fraction(factor), last=False)],
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


def _cells(rows: Tensor) -> Tensor:
    """(1, channels, n, width) -> (n * width, channels)"""
    return rows[0].permute(1, 2, 0).flatten(0, 1)


def _rows(cells: Tensor, width: int) -> Tensor:
    """Inverse of `_cells`."""
    return cells.view(-1, width, cells.shape[1]).permute(2, 0, 1)[None]


def _norm(attention: Attention) -> nn.GroupNorm:
    norm = attention.group_norm
    assert norm is not None, "the autoencoder's attention is normalized"
    return norm
