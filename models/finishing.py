"""From the decoder's image to the result's rows: colours, size and range."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from models.color import corrected_rows
from models.errors import NotFinite
from models.parameters import ColorFix
from models.resize import reduced_rows
from models.tiling import Layout

__all__ = ["check_finite", "finished_rows", "joined"]

# Pixels that are corrected and handed out at once; and rows at least, because a strip reads up to
# 31 more on both sides.
_STRIP, _ROWS = 2**18, 64


def check_finite(values: Tensor, what: str, dtype: torch.dtype) -> None:
    """Stops what would be written as a black picture.

    Args:
        values: (1, c, h, w); a few rows at a time are looked at.
        what: they are.
        dtype: that they were computed in.

    Raises:
        NotFinite: an infinity or no number is among them.
    """
    if all(bool(part.isfinite().all()) for part in torch.split(values, _ROWS, dim=2)):
        return
    name = str(dtype).removeprefix("torch.")
    hint = "Use bfloat16 or float32, which hold larger ones."
    if dtype != torch.float16:
        hint = "Verify the weights (`stablesr weights verify`)."
    raise NotFinite(f"The {what}, computed in {name}, has values that are not finite. {hint}")


@torch.no_grad()
def finished_rows(
    image: Tensor, reference: Tensor, layout: Layout, fix: ColorFix
) -> Iterator[Tensor]:
    """The result from top to bottom, (3, n, W) each, in [0, 1].

    Colour correction, the cut of the padding and the way down to the result's size go strip by
    strip, so that no second image stands beside the decoded one.

    Args:
        image: the decoder's, (1, 3, *layout.padded), in [-1, 1] or so, float32 on the host.
        reference: the upsampled input, like it.
        layout: the sizes.
        fix: how colours are matched to the reference's.
    """
    rows = _canvas_rows(image, reference, layout.canvas, fix)
    if layout.size != layout.canvas:
        rows = reduced_rows(rows, layout.canvas[0], layout.size)
    for strip in rows:
        yield strip.clamp(0, 1)


def _canvas_rows(
    image: Tensor, reference: Tensor, canvas: tuple[int, int], fix: ColorFix
) -> Iterator[Tensor]:
    height, width = canvas
    top = 0
    for strip in corrected_rows(image, reference, fix, max(_ROWS, _STRIP // width)):
        if top < height:
            yield (strip[0, :, : height - top, :width] + 1) / 2
        top += strip.shape[2]


def joined(rows: Iterable[Tensor], size: tuple[int, int]) -> Tensor:
    """Rows (3, n, W) from top to bottom -> (1, 3, *size)."""
    result = torch.empty((1, 3, *size))
    top = 0
    for strip in rows:
        result[0, :, top : top + strip.shape[1]] = strip
        top += strip.shape[1]
    return result
