"""Whether an uploaded file may become a job: format, one frame, completeness, pixels in and out.

Nothing is decoded. What passes here can still fail in the worker (a damaged pixel stream), but it
is a whole file of an allowed format whose decoded size and result are within the limits.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import IO

from jobs.errors import OutputTooLarge
from jobs.image_file import check_side, examine
from jobs.presets import MAX_CANVAS, get_preset
from jobs.schema import ImageInfo, Parameters
from jobs.settings import Settings
from service.errors import ImageEmpty

__all__ = ["MEDIA_TYPES", "inspect", "output_size"]

MEDIA_TYPES: Mapping[str, str] = MappingProxyType(
    {name: f"image/{name.lower()}" for name in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")}
)
LONGEST_NAME = 200


def output_size(width: int, height: int, scale: float) -> tuple[int, int]:
    """(width, height) in pixels of the result of an upright image of that size."""
    return round(scale * width), round(scale * height)


def inspect(
    file: IO[bytes], filename: str | None, parameters: Parameters, settings: Settings
) -> ImageInfo:
    """Describes an uploaded image, sides in pixels as a viewer sees them.

    Args:
        file: the whole upload, on disk (it is mapped, not read) and seekable.
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
        header = examine(data, file, settings.max_input_pixels)
    width, height = header.upright
    _check_output(width, height, parameters, settings)
    return ImageInfo(
        width=width,
        height=height,
        format=header.format,
        media_type=MEDIA_TYPES[header.format],
        bytes=size,
        mode=header.mode,
        depth=header.depth,
        filename=_safe_name(filename),
    )


def _check_output(width: int, height: int, parameters: Parameters, settings: Settings) -> None:
    limit, kind = settings.max_output_pixels, parameters.output_format
    out_width, out_height = output_size(width, height, parameters.scale)
    facts = {"width": out_width, "height": out_height, "scale": parameters.scale}
    said = f"At scale {parameters.scale:g} the result would have {out_width} x {out_height}"
    if out_width * out_height > limit:
        raise OutputTooLarge(
            f"{said} = {out_width * out_height} pixels; at most {limit} are made.",
            pixels=out_width * out_height,
            max_output_pixels=limit,
            **facts,
        )
    check_side(out_width, out_height, kind)
    preset = get_preset(parameters.preset)
    canvas_width, canvas_height = preset.canvas(width, height, parameters.scale)
    if canvas_width * canvas_height > MAX_CANVAS:
        # Only where that is why the canvas is larger than the result.
        narrow = (canvas_width, canvas_height) != (out_width, out_height)
        reason = (
            f", because its shorter side is enlarged to {preset.native} pixels at least"
            if narrow
            else ""
        )
        raise OutputTooLarge(
            f"The image of {width} x {height} pixels would be computed at {canvas_width} x "
            f"{canvas_height}{reason}; at most {MAX_CANVAS} pixels can be. "
            "Cut it into smaller pieces.",
            pixels=canvas_width * canvas_height,
            max_canvas_pixels=MAX_CANVAS,
            **facts,
        )


def _safe_name(filename: str | None) -> str | None:
    """The last part of a client's path, printable and not too long; None when nothing is left."""
    last = PurePosixPath((filename or "").replace("\\", "/")).name
    printable = "".join(letter for letter in last if letter.isprintable())
    return printable[-LONGEST_NAME:].strip(". ") or None
