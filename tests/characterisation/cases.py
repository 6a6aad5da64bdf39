"""What is upscaled: sixty pairs of an image and parameters, as a request would name them.

Between them they pass every sampler, colour correction, number of channels and depth, sizes that
are no multiple of the latent's, images of one tile and of many, tall and wide.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.worker.image_files import file_of, png_of, ramp16, tiff_of

PHOTOGRAPHS = Path(__file__).parent.parent / "photographs"


@dataclass(frozen=True)
class Case:
    """One image file and the parameters it is upscaled with."""

    name: str
    file: Callable[[], bytes]
    parameters: Mapping[str, str | int | float] = field(default_factory=dict)


def pixels(photograph: str, width: int, height: int) -> NDArray[np.uint8]:
    """The middle of a photograph."""
    whole = np.asarray(Image.open(PHOTOGRAPHS / f"{photograph}.webp").convert("RGB"))
    top, left = (whole.shape[0] - height) // 2, (whole.shape[1] - width) // 2
    return whole[top : top + height, left : left + width]


def png(photograph: str, width: int, height: int, mode: str = "RGB") -> bytes:
    return file_of(Image.fromarray(pixels(photograph, width, height)).convert(mode))


def with_alpha(photograph: str, width: int, height: int, mode: str) -> bytes:
    image = Image.fromarray(pixels(photograph, width, height)).convert(mode)
    image.putalpha(Image.linear_gradient("L").resize(image.size, Image.Resampling.NEAREST))
    return file_of(image)


def deep(photograph: str, width: int, height: int) -> NDArray[np.uint16]:
    """16 bits a channel, whose low bytes matter."""
    wide = pixels(photograph, width, height).astype(np.uint16) * 257
    low = ramp16(3, width, height) & 63
    return (wide ^ low).astype(np.uint16)


def deep_png(photograph: str, width: int, height: int) -> bytes:
    return png_of(deep(photograph, width, height), bits=16)


def tiff(photograph: str, width: int, height: int) -> bytes:
    levels = deep(photograph, width, height).astype("<u2").tobytes()
    return tiff_of(levels, width, height, photometric=2, bits=(16, 16, 16))


def jpeg(photograph: str, width: int, height: int, mode: str = "RGB", turn: int = 1) -> bytes:
    """`turn`: the EXIF orientation."""
    image = Image.fromarray(pixels(photograph, width, height)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = turn
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, exif=exif)
    return file.getvalue()


def cases() -> list[Case]:
    panda = partial(png, "red_panda", 64, 64)
    tiles = partial(png, "petra", 200, 152)
    table = [Case(f"w {w}", panda, {"fidelity_weight": w}) for w in (0, 0.25, 0.5, 0.75, 1)]
    table += [
        Case(f"scale {scale}", partial(png, "kitten", 48, 40), {"scale": scale})
        for scale in (1, 1.5, 2, 3, 3.7, 6, 8, 16)
    ]
    table += [
        Case(f"{width} x {height}", partial(png, "kingfisher", width, height))
        for width, height in (
            *((1, 1), (3, 2), (15, 17), (63, 65), (100, 36), (128, 128), (131, 127)),
            *((40, 128), (128, 40), (30, 75)),
        )
    ]
    table += [
        Case(f"{sampler}, {steps} steps", panda, {"sampler": sampler, "steps": steps})
        for sampler in ("ddpm", "ddim", "dpmpp", "unipc")
        for steps in (1, 3, 8)
    ]
    table += [
        Case("ddim, eta 0", panda, {"sampler": "ddim", "eta": 0, "steps": 4}),
        Case("ddim, eta 0.4", panda, {"sampler": "ddim", "eta": 0.4, "steps": 4}),
        Case("25 steps", panda, {"steps": 25}),
        Case("from noise", panda, {"start": "noise", "steps": 6}),
        Case("seed 1", panda, {"seed": 1}),
        Case("seed of 32 bits", panda, {"seed": 2**32 - 1}),
    ]
    table += [
        Case(f"colours by {fix}", partial(png, "Wine_by_Jakkub_Mede", 80, 60), {"color_fix": fix})
        for fix in ("adain", "wavelet", "none")
    ]
    table += [
        Case("tiles", tiles),
        Case("tiles, narrow overlap", tiles, {"tile_overlap": 8}),
        Case("tiles, wavelet", tiles, {"color_fix": "wavelet", "fidelity_weight": 1}),
        Case("tiles, unipc", tiles, {"sampler": "unipc", "steps": 3, "fidelity_weight": 0}),
        Case("tiles across", partial(png, "berlinCathedral", 200, 60)),
        Case("tiles down", partial(png, "berlinCathedral", 60, 180)),
        Case("tiles at scale 2", partial(png, "petra", 256, 180), {"scale": 2}),
    ]
    table += [
        Case("grey", partial(png, "kitten", 60, 44, "L")),
        Case("palette", partial(png, "kitten", 60, 44, "P")),
        Case("one bit", partial(png, "kitten", 60, 44, "1")),
        Case("alpha", partial(with_alpha, "LadyBird", 60, 44, "RGB")),
        Case("grey and alpha", partial(with_alpha, "LadyBird", 60, 44, "L")),
        Case("PNG of 16 bits", partial(deep_png, "LadyBird", 60, 44)),
        Case("TIFF of 16 bits", partial(tiff, "kitten", 44, 60), {"output_format": "tiff"}),
        Case("JPEG", partial(jpeg, "EveningGlow", 60, 44)),
        Case("JPEG turned", partial(jpeg, "EveningGlow", 60, 44, turn=6)),
    ]
    return table


CASES = cases()
