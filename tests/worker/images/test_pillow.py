"""Formats that Pillow and libheif decode: levels, depth and orientation as in the other formats."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.worker.image_files import file_of, gradient, ramp16
from tests.worker.images.levels import FILES, levels, levels16
from worker.images import decode

LIMIT = 1_000_000
# The four corners of the files by libheif: brown, blue, nearly white, nearly black.
CORNERS = [[(200, 120, 60), (20, 40, 200)], [(250, 250, 250), (5, 5, 5)]]


def corners(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    image = decode((FILES / name).read_bytes(), LIMIT)
    width, height = image.size
    every = levels(image).astype(np.int32)
    return every[height // 4 :: height // 2, width // 4 :: width // 2]


@pytest.mark.parametrize("name", ["rgb.heic", "rgba.heic", "ten-bits.heic", "two.heic"])
def test_a_heic_has_its_colours(name: str) -> None:
    assert np.abs(corners(name) - CORNERS).max() <= 4


def test_a_heic_stands_upright() -> None:
    upright = np.rot90(np.array(CORNERS), -1)
    assert np.abs(corners("turned.heic") - upright).max() <= 4


def test_a_heic_of_10_bits_deserves_16() -> None:
    image = decode((FILES / "ten-bits.heic").read_bytes(), LIMIT)
    assert image.depth == 16
    assert abs(int(levels16(image)[36, 16, 0]) - 250 * 257) < 200


def test_grey_of_10_bits_is_spread_to_16() -> None:
    image = decode((FILES / "grey-ten-bits.heic").read_bytes(), LIMIT)
    assert (image.grey, image.depth) == (True, 16)
    assert abs(int(levels16(image)[36, 16, 0]) - 250 * 257) < 200


def test_opacity_and_grey_of_a_heic_stay() -> None:
    image = decode((FILES / "rgba.heic").read_bytes(), LIMIT)
    assert image.alpha is not None
    assert float(image.alpha[0, 0, 12, 48]) == pytest.approx(64 / 255, abs=0.02)
    assert decode((FILES / "grey.heic").read_bytes(), LIMIT).grey


def test_a_heic_of_display_p3_becomes_srgb() -> None:
    # Against Pillow's own conversion of the same colour between ICC profiles.
    assert np.abs(corners("p3.heic")[0, 0] - (213, 117, 46)).max() <= 4


@pytest.mark.parametrize(
    ("format", "mode"),
    [("GIF", "P"), ("BMP", "RGB"), ("BMP", "P"), ("JPEG2000", "RGB"), ("JPEG2000", "L")],
)
def test_lossless_formats_are_read_exactly(format: str, mode: str) -> None:
    image = Image.fromarray(gradient()).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(levels(decode(file_of(image, format), LIMIT)), expected)


def test_a_bmp_of_two_colours_is_grey() -> None:
    image = Image.fromarray(gradient()).convert("1")
    assert decode(file_of(image, "BMP"), LIMIT).grey


def test_a_transparent_colour_of_a_gif_is_opacity() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    decoded = decode(file_of(image, "GIF", transparency=0), LIMIT)
    assert decoded.alpha is not None
    assert decoded.alpha.flatten().tolist() == [0, 1]
    assert levels(decoded)[0, 1].tolist() == [200, 100, 50]


def test_16_bits_of_a_jpeg_2000_are_kept() -> None:
    values = ramp16(1)
    image = decode(file_of(Image.fromarray(values[..., 0]), "JPEG2000"), LIMIT)
    assert (image.grey, image.depth) == (True, 16)
    assert np.array_equal(levels16(image), values)


def test_what_a_small_image_leaves_of_a_gifs_screen_is_transparent() -> None:
    data = file_of(Image.new("RGB", (4, 2), (200, 100, 50)), "GIF")
    at = data.index(b",", 13 + 3 * 2 ** (1 + (data[10] & 7)))
    screen = data[:6] + b"\x08\0\x06\0" + data[10 : at + 1] + b"\3\0\2\0" + data[at + 5 :]
    image = decode(screen, LIMIT)
    assert image.alpha is not None
    expected = np.zeros((6, 8))
    expected[2:4, 3:7] = 1
    assert np.array_equal(image.alpha[0, 0], expected)
    assert levels(image)[3, 4].tolist() == [200, 100, 50]
