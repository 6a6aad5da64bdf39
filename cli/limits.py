"""What a server, or this machine, can make of an image, judged by its header before any work."""

from __future__ import annotations

import math
import sys
from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cli.folder import Item
from cli.journal import Work
from cli.view import FolderView
from jobs.errors import ImageError, ImageTooLarge, OutputTooLarge
from jobs.formats import examine
from jobs.image_file import check_output
from models.geometry import MAX_CANVAS
from models.parameters import UpscaleParameters
from stablesr_client import Models


@dataclass(frozen=True)
class Limits:
    """Of one image: the file in bytes, the image and its result in pixels."""

    upload_bytes: int = sys.maxsize
    input_pixels: int = sys.maxsize
    output_pixels: int = MAX_CANVAS

    @classmethod
    def of(cls, models: Models) -> Limits:
        """Those that a server tells."""
        limits = (models.max_upload_bytes, models.max_input_pixels, models.max_output_pixels)
        return cls(*(sys.maxsize if limit is None else limit for limit in limits))


class OverLimit(Exception):
    """An image cannot be made as asked; `fits` is whether a smaller scale would do."""

    def __init__(self, reason: str, *, fits: bool = False) -> None:
        super().__init__(reason)
        self.fits = fits


def judge(work: Work, limits: Limits, parameters: Mapping[str, UpscaleParameters]) -> bool:
    """Takes the images over a limit out of the work and says why of each, or with `--fit` gives
    them the largest scale, in hundredths, that fits. Whether `--fit` would keep some of them.

    `parameters` are what is asked for, by the result's format; where there are none the size of
    the result is not judged. A file that cannot be read is left to what decodes it.
    """
    would_fit, items = False, []
    for item in work.todo:
        work.view.look(item.name)
        request = parameters.get(item.output_format)
        try:
            scale = _scale_of(item, request, limits, work.view if work.options.fit else None)
        except OverLimit as error:
            would_fit |= error.fits
            work.note(item.name, str(error))
        else:
            items.append(replace(item, scale=scale))
    work.todo = items
    return would_fit


def _scale_of(
    item: Item, request: UpscaleParameters | None, limits: Limits, view: FolderView | None
) -> float | None:
    """The smaller scale at which an image fits, told to the view; None where it fits as asked.

    Raises OverLimit, without a view also where a smaller scale would do.
    """
    if item.size > limits.upload_bytes:
        raise OverLimit(f"It has {item.size} bytes; at most {limits.upload_bytes} are taken.")
    try:
        page = request.page if request else None
        data = item.source.read_bytes()
        width, height = examine(data, limits.input_pixels, page).upright
    except ImageTooLarge as error:
        raise OverLimit(str(error)) from error
    except (ImageError, OSError):
        return None
    if request is None:
        return None
    try:
        parameters = request.for_image(width, height)
    except ValueError as error:
        raise OverLimit(f"{error}.") from error

    def fault_at(scale: float) -> str:
        candidate = parameters.model_copy(update={"scale": scale})
        try:
            check_output(width, height, candidate, limits.output_pixels)
        except OutputTooLarge as error:
            return str(error)
        return ""

    if not (fault := fault_at(parameters.scale)):
        return None
    smaller = range(100, math.ceil(100 * parameters.scale))
    count = bisect(smaller, False, key=lambda hundredths: bool(fault_at(hundredths / 100)))
    if view is None or not count:
        # What does not fit at all says so of scale 1.
        raise OverLimit(fault if count else fault_at(1), fits=count > 0)
    scale = smaller[count - 1] / 100
    view.fit(item.name, scale, parameters.scale)
    return scale
