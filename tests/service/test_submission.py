"""What the service says of an upload before anything is decoded."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.errors import ImageAnimated, OutputTooLarge, UnsupportedFormat
from jobs.schema import ImageInfo
from jobs.settings import Settings
from models.parameters import OutputFormat, UpscaleParameters
from service.submission import inspect
from tests.worker.image_files import file_of, gradient, png_of, ramp16, tiff_of


def inspected(data: bytes, scale: float = 2, output_format: OutputFormat = "png") -> ImageInfo:
    parameters = UpscaleParameters(scale=scale, output_format=output_format)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return inspect(file, "in.png", parameters, Settings(max_output_pixels=2**40))


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


RGB = Image.fromarray(gradient(12, 8))
RGBA = Image.fromarray(gradient(12, 8, 4))
CASES: dict[str, tuple[bytes, tuple[int, int], str, int]] = {
    "16-bit png": (png_of(ramp16(4), bits=16), (21, 13), "RGBA", 16),
    "16-bit grey png": (png_of(ramp16(2), bits=16, interlaced=True), (21, 13), "LA", 16),
    "1-bit png": (file_of(RGB.convert("1")), (12, 8), "L", 1),
    "palette png": (file_of(RGB.quantize(9), transparency=2), (12, 8), "RGBA", 8),
    "cmyk jpeg": (file_of(RGB.convert("CMYK"), "JPEG"), (12, 8), "CMYK", 8),
    "turned jpeg": (file_of(RGB, "JPEG", exif=exif(6)), (8, 12), "RGB", 8),
    "turned tiff": (file_of(RGB, "TIFF", exif=exif(5)), (8, 12), "RGB", 8),
    "turned avif": (file_of(RGB, "AVIF", exif=exif(8)), (8, 12), "RGB", 8),
    "turned webp": (file_of(RGBA, "WEBP", exif=exif(7)), (8, 12), "RGBA", 8),
    "jpeg in a tiff": (file_of(RGB, "TIFF", compression="jpeg"), (12, 8), "RGB", 8),
    "fax": (file_of(RGB.convert("1"), "TIFF", compression="group4"), (12, 8), "L", 1),
    # Kinds that Pillow's own plugin does not open.
    "16-bit grey tiff with opacity": (
        tiff_of(bytes(16), 2, 2, photometric=1, bits=(16, 16), tags={338: (2,)}),
        (2, 2),
        "LA",
        16,
    ),
    "16-bit tiff in planes": (
        tiff_of(bytes(24), 2, 2, photometric=2, bits=(16,) * 3, planes=3),
        (2, 2),
        "RGB",
        16,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_image_is_taken_and_described(case: str) -> None:
    data, size, mode, depth = CASES[case]
    found = inspected(data)
    assert (found.width, found.height) == size
    assert (found.mode, found.depth, found.bytes) == (mode, depth, len(data))


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.fromarray(np.ones((4, 4), np.float32)), {}),
        (Image.new("LAB", (4, 4)), {}),
        (RGB, {"compression": "lzma"}),
    ],
)
def test_what_no_worker_can_read_is_refused_at_once(
    image: Image.Image, options: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedFormat, match="of a kind not read"):
        inspected(file_of(image, "TIFF", **options))


def test_pages_are_refused() -> None:
    with pytest.raises(ImageAnimated):
        inspected(file_of(RGB, "TIFF", save_all=True, append_images=[RGB]))


@pytest.mark.parametrize(
    ("output_format", "size"),
    [("webp", (1100, 1)), ("jpeg", (4100, 1)), ("tiff", (4096, 600))],
)
def test_a_result_that_its_format_cannot_hold_is_refused(
    output_format: OutputFormat, size: tuple[int, int]
) -> None:
    data = file_of(Image.new("1", size))
    with pytest.raises(OutputTooLarge, match=f"A {output_format} file has at most"):
        inspected(data, 16, output_format)
