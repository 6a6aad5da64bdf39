"""Images as people have them: what every kind of file is decoded to, value by value."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import pyvips
import torch
from PIL import Image, ImageOps
from structlog.testing import capture_logs

from jobs.errors import ImageTruncated
from tests.worker.image_files import file_of, gradient, png_of, ramp16, tiff_of
from tests.worker.images.levels import FILES, levels, levels16
from worker.images import decode

LIMIT = 1_000_000
# The four corners of the files by libheif: brown, blue, nearly white, nearly black.
CORNERS = [[(200, 120, 60), (20, 40, 200)], [(250, 250, 250), (5, 5, 5)]]


def test_rgb_is_read_exactly() -> None:
    image = decode(file_of(Image.fromarray(gradient())), LIMIT)
    assert image.rgb.shape == (1, 3, 8, 12)
    assert image.rgb.dtype == torch.float32
    assert image.alpha is None
    assert (image.size, image.channels, image.depth) == ((12, 8), 3, 8)
    assert np.array_equal(levels(image), gradient())


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_of_16_bits_keeps_them_all(channels: int, interlaced: bool) -> None:
    values = ramp16(channels)
    if channels in (2, 4):
        values[..., -1] |= 1  # what is hidden may change
    image = decode(png_of(values, bits=16, interlaced=interlaced), LIMIT)
    assert np.array_equal(levels16(image), values)
    assert (image.channels, image.depth) == (channels, 16)
    assert image.grey == (channels < 3)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_few_bits_of_grey_reach_from_black_to_white(bits: int) -> None:
    top = 2**bits - 1
    values = (np.arange(40).reshape(5, 8, 1) % (top + 1)).astype(np.uint8)
    image = decode(png_of(values, bits=bits), LIMIT)
    assert image.grey
    assert image.depth == 8
    assert np.allclose(image.rgb[0, 1], values[..., 0] / top, atol=1e-6)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planes", [1, 3])
def test_a_tiff_of_16_bits_keeps_them_all(order: str, planes: int) -> None:
    values = ramp16(3)
    height, width, _ = values.shape
    stored = values if planes == 1 else np.moveaxis(values, -1, 0)
    data = tiff_of(
        stored.astype(f"{order}u2").tobytes(),
        width,
        height,
        photometric=2,
        bits=(16, 16, 16),
        order=order,
        planes=planes,
    )
    image = decode(data, LIMIT)
    assert np.array_equal(levels16(image), values)
    assert (image.channels, image.depth) == (3, 16)


@pytest.mark.parametrize("photometric", [0, 1])
def test_a_grey_tiff_of_16_bits_stays_grey_and_the_right_way_round(photometric: int) -> None:
    values = ramp16(1)
    stored = 65535 - values if photometric == 0 else values
    data = tiff_of(stored.astype("<u2").tobytes(), 21, 13, photometric=photometric, bits=(16,))
    image = decode(data, LIMIT)
    assert image.grey
    assert np.array_equal(levels16(image), values)


def test_opacity_that_is_multiplied_in_is_divided_out() -> None:
    pixels = np.array([[32768, 16384, 0, 32768]], np.uint16)
    bits = (16, 16, 16, 16)
    data = tiff_of(pixels.tobytes(), 1, 1, photometric=2, bits=bits, tags={338: (1,)})
    assert np.abs(levels16(decode(data, LIMIT)) - [65535, 32767, 0, 32768]).max() <= 1


def test_opacity_that_stands_alone_is_read_as_it_is() -> None:
    pixels = np.array([[60000, 16384, 7, 32768]], np.uint16)
    bits = (16, 16, 16, 16)
    data = tiff_of(pixels.tobytes(), 1, 1, photometric=2, bits=bits, tags={338: (2,)})
    assert levels16(decode(data, LIMIT)).tolist() == [[[60000, 16384, 7, 32768]]]


def test_an_editors_mask_beside_the_colours_is_no_opacity() -> None:
    pixels = np.array([[9, 8, 7, 0]], np.uint8)
    data = tiff_of(pixels.tobytes(), 1, 1, photometric=2, bits=(8, 8, 8, 8), tags={338: (0,)})
    image = decode(data, LIMIT)
    assert image.alpha is None
    assert levels(image).tolist() == [[[9, 8, 7]]]


# By the equations of Rec. ITU-R BT.601 for Y 100, Cb 90, Cr 200.
YCBCR, AS_RGB = (100, 90, 200), (200.9, 61.7, 32.7)


def test_a_tiff_of_bare_ycbcr_becomes_rgb() -> None:
    pixels = bytes(YCBCR) * 8
    data = tiff_of(pixels, 4, 2, photometric=6, bits=(8, 8, 8), tags={530: (1, 1)})
    image = decode(data, LIMIT)
    assert np.abs(image.rgb[0, :, 1, 2].numpy() * 255 - AS_RGB).max() < 0.1


def test_a_tiff_of_ycbcr_with_colours_of_half_the_size_becomes_rgb() -> None:
    y, cb, cr = YCBCR
    pixels = bytes((y, y, y, y, cb, cr)) * 2
    data = tiff_of(pixels, 4, 2, photometric=6, bits=(8, 8, 8), tags={530: (2, 2)})
    image = decode(data, LIMIT)
    assert image.alpha is None
    assert np.abs(image.rgb[0, :, 1, 2].numpy() * 255 - AS_RGB).max() < 1


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
def test_every_lossless_packing_of_a_tiff_is_unpacked(mode: str, compression: str) -> None:
    source = Image.fromarray(gradient()).convert(mode)
    image = decode(file_of(source, "TIFF", compression=compression), LIMIT)
    assert np.array_equal(levels(image), np.asarray(source.convert("RGB")))
    assert image.grey == (mode == "L")
    assert (image.alpha is not None) == (mode == "RGBA")


def test_a_tiff_with_a_jpeg_inside_is_read() -> None:
    smooth = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
    image = decode(file_of(smooth, "TIFF", compression="jpeg", quality=95), LIMIT)
    assert np.abs(levels(image).astype(int) - np.asarray(smooth)).max() <= 4


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_a_palette_is_spread_out(format: str) -> None:
    source = Image.fromarray(gradient()).quantize(16)
    image = decode(file_of(source, format), LIMIT)
    assert not image.grey
    assert np.array_equal(levels(image), np.asarray(source.convert("RGB")))


@pytest.mark.parametrize(("transparency", "opacity"), [(1, [255, 0]), (bytes([9, 200]), [9, 200])])
def test_a_palettes_transparency_becomes_opacity(transparency: Any, opacity: list[int]) -> None:
    source = Image.new("P", (2, 1))
    source.putpalette([255, 0, 0, 0, 0, 255])
    source.putpixel((1, 0), 1)
    image = decode(file_of(source, transparency=transparency), LIMIT)
    assert image.alpha is not None
    assert (image.alpha.flatten() * 255).round().tolist() == opacity
    assert image.rgb[0, :, 0, 0].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_transparent_colour_becomes_opacity(mode: str) -> None:
    source = Image.new(mode, (2, 1), "white")
    key = 77 if mode == "L" else (7, 8, 9)
    source.putpixel((0, 0), key)
    image = decode(file_of(source, transparency=key), LIMIT)
    assert image.grey == (mode == "L")
    assert image.alpha is not None
    assert image.alpha.flatten().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_grey_files_are_known_as_such(mode: str, format: str) -> None:
    source = Image.fromarray(gradient()).convert(mode)
    image = decode(file_of(source, format), LIMIT)
    assert image.grey
    assert np.array_equal(levels(image), np.asarray(source.convert("RGB")))


@pytest.mark.parametrize("format", ["JPEG", "AVIF"])
def test_a_file_without_colour_planes_is_grey(format: str) -> None:
    source = Image.linear_gradient("L").resize((32, 24))
    image = decode(file_of(source, format, quality=95), LIMIT)
    assert image.grey
    assert np.abs(levels(image)[..., 1].astype(int) - np.asarray(source)).max() <= 3


def test_opacity_is_kept_apart_from_the_colours() -> None:
    values = gradient(channels=4)
    values[..., 3] |= 1
    for format, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        image = decode(file_of(Image.fromarray(values), format, **options), LIMIT)
        assert np.array_equal(levels(image), values[..., :3])
        assert image.alpha is not None
        assert np.array_equal((image.alpha[0, 0] * 255).round().numpy(), values[..., 3])


def test_opacity_that_is_full_everywhere_stays_a_channel() -> None:
    image = decode(file_of(Image.new("RGBA", (3, 2), "red")), LIMIT)
    assert image.channels == 4


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
def test_lossy_files_come_close(format: str) -> None:
    smooth = Image.merge("RGB", [Image.linear_gradient("L").resize((32, 32))] * 3)
    image = decode(file_of(smooth, format, quality=95), LIMIT)
    assert np.abs(levels(image).astype(int) - np.asarray(smooth)).max() <= 5


def test_a_progressive_jpeg_is_the_same_as_a_plain_one() -> None:
    image = Image.linear_gradient("L").resize((32, 24)).convert("RGB")
    plain, progressive = (file_of(image, "JPEG", progressive=kind) for kind in (False, True))
    assert np.array_equal(levels(decode(plain, LIMIT)), levels(decode(progressive, LIMIT)))


@pytest.mark.parametrize("depth", [10, 12])
def test_an_avif_of_more_than_8_bits_reaches_white(depth: int) -> None:
    values = np.full((16, 16, 3), 65535, np.uint16)
    source = pyvips.Image.new_from_array(values, interpretation="rgb16")
    data = source.heifsave_buffer(compression="av1", bitdepth=depth, lossless=True)
    image = decode(data, LIMIT)
    assert image.depth == 16
    assert image.rgb.min() > 0.9999


# Inks are stored inverted in a JPEG with Adobe's mark, as Pillow writes it.
@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_inks_without_a_profile_are_shown_as_browsers_do(format: str) -> None:
    inks = {
        (0, 0, 0, 0): (255, 255, 255),
        (0, 255, 255, 0): (255, 0, 0),
        (255, 0, 0, 0): (0, 255, 255),
        (0, 0, 0, 255): (0, 0, 0),
        (0, 128, 255, 51): (204, 102, 0),
    }
    for ink, colour in inks.items():
        image = Image.new("CMYK", (16, 16), ink)
        options = {"quality": 100} if format == "JPEG" else {}
        found = levels(decode(file_of(image, format, **options), LIMIT))[8, 8]
        assert np.abs(found.astype(int) - colour).max() <= 2


def test_inks_of_16_bits_keep_their_precision() -> None:
    pixels = np.array([[0, 1000, 65535, 100]], np.uint16).tobytes()
    image = decode(tiff_of(pixels, 1, 1, photometric=5, bits=(16,) * 4), LIMIT)
    red = (65535 - 100) / 65535
    assert torch.allclose(
        image.rgb.flatten(), torch.tensor([red, red * 64535 / 65535, 0]), atol=1e-6
    )
    assert image.depth == 16


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied(orientation: int, format: str) -> None:
    # Four quarters that tell every turn and mirror image from every other.
    quarters = np.zeros((16, 32, 3), np.uint8)
    quarters[:8, :16], quarters[:8, 16:], quarters[8:, :16] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(Image.fromarray(quarters), format, exif=exif)
    image = decode(data, LIMIT)
    with Image.open(io.BytesIO(data)) as source:
        wanted = np.asarray(ImageOps.exif_transpose(source).convert("RGB"))
    assert image.size == (wanted.shape[1], wanted.shape[0])
    # In the middle of each quarter, where no compression blurs.
    rows, columns = wanted.shape[0] // 4, wanted.shape[1] // 4
    found = levels(image)[rows :: 2 * rows, columns :: 2 * columns].astype(int)
    assert np.abs(found - wanted[rows :: 2 * rows, columns :: 2 * columns]).max() <= 12


def test_the_page_that_is_asked_for_is_read_as_it_is() -> None:
    pages = [Image.fromarray(gradient()).convert("L"), Image.fromarray(gradient(20, 10))]
    data = file_of(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert decode(data, LIMIT, page=1).grey
    assert np.array_equal(levels(decode(data, LIMIT, page=2)), gradient(20, 10))


@pytest.mark.parametrize(("format", "size"), [("PNG", 12), ("JPEG", 2)])
def test_a_file_without_the_mark_of_its_end_is_read_and_logged(format: str, size: int) -> None:
    data = file_of(Image.fromarray(gradient(40, 30)), format)
    with capture_logs() as lines:
        image = decode(data[:-size], LIMIT)
    assert torch.equal(image.rgb, decode(data, LIMIT).rgb)
    assert [line["event"] for line in lines] == ["image read without the mark of its end"]


def test_a_jpeg_that_lacks_a_byte_of_its_pixels_is_refused() -> None:
    data = file_of(Image.fromarray(gradient(40, 30)), "JPEG")
    for size in range(3, 40):
        with pytest.raises(ImageTruncated):
            decode(data[:-size], LIMIT)


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
