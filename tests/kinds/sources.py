"""What a kind of file is, the pictures that all of them show, and how they are known again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyvips
from PIL import Image

from tests.kinds.tools import Floats, magick, of_levels, written
from tests.service.pictures import png_chunk
from tests.worker.image_files import file_of, png_of

WIDTH, HEIGHT = 48, 32


@dataclass(frozen=True)
class Variant:
    """A file, who made it, and either what it shows or what its refusal must name."""

    kind: str
    maker: str
    data: bytes
    reference: str = ""
    expected: Callable[[], Floats] = lambda: np.empty((0, 0, 4))
    tolerance: float = 0.51
    """Of 255 levels."""
    depth: int = 8
    page: int = 0
    refusal: str = ""


def ramps(channels: int, top: int) -> np.ndarray[Any, Any]:
    """Smooth, and different in every corner and channel; opacity never 0."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    u, v = x / (WIDTH - 1), y / (HEIGHT - 1)
    planes = [u, v, 0.2 + 0.6 * u * v, 0.3 + 0.7 * (1 - v)][:channels]
    if channels == 2:
        planes = [u, 0.3 + 0.7 * (1 - v)]
    levels: np.ndarray[Any, Any] = np.rint(np.stack(planes, -1) * top)
    return levels.astype(np.uint8 if top < 256 else np.uint16)


RGB, RGBA, GREY = ramps(3, 255), ramps(4, 255), ramps(1, 255)
RGB16, RGBA16, GREY16 = ramps(3, 65535), ramps(4, 65535), ramps(1, 65535)
PNG, PNG16 = file_of(Image.fromarray(RGB)), png_of(RGB16, bits=16)


def _profile(name: str) -> bytes:
    """An ICC profile that libvips brings along."""
    black = pyvips.Image.black(1, 1, bands=3).copy(interpretation="srgb")
    profile = black.icc_transform(name, input_profile="srgb").get("icc-profile-data")
    assert isinstance(profile, bytes)
    return profile


P3, SRGB_ICC = _profile("p3"), _profile("srgb")


def p3_as_srgb(levels: np.ndarray[Any, Any]) -> Floats:
    """Levels of Display P3 by arithmetic: its matrix to sRGB's primaries, the same curve (SMPTE EG
    432-1, IEC 61966-2-1)."""
    values = of_levels(levels)
    rgb = values[..., :3]
    light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = [[1.22494, -0.22494, 0], [-0.04206, 1.04206, 0], [-0.01964, -0.07864, 1.09827]]
    light = np.clip(light @ np.array(matrix).T, 0, 1)
    srgb = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.concatenate([srgb, values[..., 3:]], axis=2)


def details(values: dict[str, Any]) -> dict[str, Any]:
    return values


def as_written(levels: np.ndarray[Any, Any]) -> dict[str, Any]:
    """What was written is what is expected."""
    return {"reference": "its source", "expected": lambda: of_levels(levels)}


def by_magick(data: bytes, suffix: str, *options: str) -> dict[str, Any]:
    return {"reference": "ImageMagick", "expected": lambda: magick(data, suffix, *options)}


def with_chunks(png: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    return png[:33] + b"".join(png_chunk(*chunk) for chunk in chunks) + png[33:]


def by_profile(data: bytes, suffix: str) -> Floats:
    """What ImageMagick makes of a file by its profile."""
    with written(SRGB_ICC, "icc") as profile:
        return magick(data, suffix, "-intent", "relative", "-profile", str(profile))
