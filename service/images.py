"""Whether an uploaded file may become a job: format, one frame, completeness, pixels in and out.

Nothing is decoded. What passes here can still fail in the worker (a damaged pixel stream), but it
is a whole file of an allowed format whose decoded size and result are within the limits.
"""

from __future__ import annotations

import mmap
from pathlib import PurePosixPath
from typing import IO

from jobs.errors import OutputTooLarge
from jobs.formats import examine
from jobs.image_file import check_side
from jobs.presets import MAX_CANVAS, get_preset
from jobs.schema import ImageInfo, Parameters
from jobs.settings import Settings
from service.errors import ImageEmpty

__all__ = ["inspect"]

MAX_NAME = 200


def inspect(
    file: IO[bytes], filename: str | None, parameters: Parameters, settings: Settings
) -> ImageInfo:
    """Describes an uploaded image, sides in pixels as a viewer sees them.

    Args:
        file: the whole upload, on disk: it is mapped, not read.
        filename: the client's name for it; kept for the result's name only.
        parameters: scale and output_format decide whether the result is possible.
        settings: the pixel limits.

    Raises:
        ImageError: the tree in `jobs.errors` and ImageEmpty, with the limits as members.
    """
    size = file.seek(0, 2)
    if size == 0:
        raise ImageEmpty("The file has 0 bytes; an image is needed.")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        header = examine(data, settings.max_input_pixels)
    width, height = header.upright
    _check_output(width, height, parameters, settings.max_output_pixels)
    return ImageInfo(
        width=width,
        height=height,
        format=header.format,
        media_type=f"image/{header.format.lower()}",
        bytes=size,
        mode=header.mode,
        depth=header.depth,
        filename=_safe_name(filename),
    )


def _check_output(width: int, height: int, parameters: Parameters, max_pixels: int) -> None:
    scale = parameters.scale
    output = round(scale * width), round(scale * height)
    pixels, sides = output[0] * output[1], f"{output[0]} x {output[1]}"
    members = {"width": output[0], "height": output[1], "scale": scale}
    if pixels > max_pixels:
        raise OutputTooLarge(
            f"At scale {scale:g} the result would have {sides} = {pixels} pixels; "
            f"at most {max_pixels} are made.",
            pixels=pixels,
            max_output_pixels=max_pixels,
            **members,
        )
    check_side(*output, parameters.output_format)
    preset = get_preset(parameters.preset)
    canvas = preset.canvas(width, height, scale)
    pixels = canvas[0] * canvas[1]
    if pixels > MAX_CANVAS:
        reason = f", because its shorter side is enlarged to {preset.native} pixels at least"
        raise OutputTooLarge(
            f"The image of {width} x {height} pixels would be computed at {canvas[0]} x "
            f"{canvas[1]}{'' if canvas == output else reason}; at most {MAX_CANVAS} pixels can "
            "be. Cut it into smaller pieces.",
            pixels=pixels,
            max_canvas_pixels=MAX_CANVAS,
            **members,
        )


def _safe_name(filename: str | None) -> str | None:
    """The last part of a client's path, printable and not too long; None when nothing is left."""
    last = PurePosixPath((filename or "").replace("\\", "/")).name
    printable = "".join(letter for letter in last if letter.isprintable())
    return printable[-MAX_NAME:].strip(". ") or None
