"""Results as files, written while their rows come in.

PNG and TIFF are streamed. JPEG and WebP need a picture that is whole: they hold it once, at 8 bits,
and their formats bound its sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyvips
import torch
from pyvips.enums import ForeignKeep
from torch import Tensor

from jobs.image_file import check_side
from jobs.schema import OutputFormat

from .library import image_of, srgb_profile
from .picture import STRIP, Depth, Levels
from .png import write_png
from .tiff import write_tiff

__all__ = ["write"]

STREAMED = {"png": write_png, "tiff": write_tiff}
"""The formats that hold 16 bits a channel."""

QUALITY = 95


def write(
    path: Path,
    rows: Iterable[Tensor],
    *,
    width: int,
    height: int,
    channels: int,
    format: OutputFormat,
    depth: Depth,
) -> None:
    """Write a picture as its rows come, values rounded to the nearest level and clamped.

    PNG and TIFF are lossless; WebP and JPEG are written at quality 95, JPEG with full-resolution
    colour and, having no transparency, over white. Both are of 8 bits, whatever `depth` says.

    Args:
        path: the file, which is overwritten; half of it remains when something is raised.
        rows: (channels, n, width) float32 from top to bottom, in strips of any height; grey, grey
            and alpha, RGB, or RGB and alpha.
        width, height: in pixels; what `rows` amount to.

    Raises:
        OutputTooLarge: `format` cannot hold that size.
        ValueError: `rows` amount to another size.
        OSError: the file cannot be written.
    """
    check_side(width, height, format)
    if format == "jpeg" and channels in (2, 4):
        rows, channels = (_over_white(strip) for strip in rows), channels - 1
    streamed = STREAMED.get(format)
    top = 65535 if streamed and depth == 16 else 255
    strips = _levels(rows, (height, width, channels), top)
    if streamed:
        with path.open("wb") as file:
            streamed(file, strips, width=width, height=height, channels=channels)
        return
    whole = np.empty((height, width, channels), np.uint8)
    for number, strip in enumerate(strips):
        whole[number * STRIP : number * STRIP + len(strip)] = strip
    # Grey stays without a profile: sRGB's would not fit it.
    coloured = channels >= 3
    image = image_of(whole, "srgb" if coloured else "b-w", srgb_profile() if coloured else None)
    try:
        if format == "webp":
            image.webpsave(path, Q=QUALITY, alpha_q=100, effort=4, keep=ForeignKeep.ICC)
        else:
            image.jpegsave(path, Q=QUALITY, subsample_mode="off", keep=ForeignKeep.ICC)
    except pyvips.Error as error:
        raise OSError(f"{path} cannot be written: {error.detail.strip()}") from error


def _over_white(strip: Tensor) -> Tensor:
    colours, alpha = strip[:-1], strip[-1:]
    return colours * alpha + (1 - alpha)


def _levels(rows: Iterable[Tensor], shape: tuple[int, int, int], top: int) -> Iterator[Levels]:
    """Quantised strips, (STRIP, width, channels) and a last one that may be lower."""
    height, width, channels = shape
    kind = np.uint8 if top == 255 else np.uint16
    strip: Levels = np.empty((STRIP, width, channels), kind)
    filled = done = 0
    for given in rows:
        done += given.shape[1]
        if done > height:
            break
        if given.shape[0] != channels or given.shape[2] != width:
            raise ValueError(f"rows must be {(channels, 'n', width)}; got {tuple(given.shape)}")
        start = 0
        while start < given.shape[1]:
            part = given[:, start : start + STRIP - filled]
            # Round half up: floor(x + 0.5), never half to even.
            levels = (part.detach().float().clamp(0, 1) * top + 0.5).floor_().to(torch.int32)
            count = part.shape[1]
            strip[filled : filled + count] = levels.permute(1, 2, 0).cpu().numpy()
            filled, start = filled + count, start + count
            if filled == STRIP:
                yield strip
                filled = 0
    if done != height:
        raise ValueError(f"{height} rows were announced and {done} came")
    if filled:
        yield strip[:filled]
