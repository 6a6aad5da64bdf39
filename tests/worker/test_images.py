from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from jobs.errors import (
    ImageAnimated,
    ImageError,
    ImageTooLarge,
    ImageTruncated,
    OutputTooLarge,
    UnsupportedFormat,
)
from worker.images import Picture, check_side, decode, encode

LIMIT = 1_000_000


def file_of(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(width: int = 12, height: int = 8, channels: int = 3) -> np.ndarray[Any, Any]:
    values = np.arange(width * height * channels) * 7 % 256
    return values.reshape(height, width, channels).astype(np.uint8)


def levels(picture: Picture) -> np.ndarray[Any, Any]:
    """(H, W, 3) of 0 to 255, exact when decoding was."""
    return (picture.rgb[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 100)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_rgb_is_read_exactly() -> None:
    picture = decode(file_of(Image.fromarray(gradient())), LIMIT)
    assert picture.rgb.shape == (1, 3, 8, 12)
    assert picture.rgb.dtype == torch.float32
    assert picture.alpha is None
    assert picture.size == (12, 8)
    assert np.array_equal(levels(picture), gradient())


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_every_output_format_is_one_that_is_read(format: Any) -> None:
    smooth = torch.linspace(0, 1, 64).expand(1, 3, 48, 64)
    picture = decode(encode(Picture(smooth), format), LIMIT)
    assert picture.rgb.shape == smooth.shape
    assert (picture.rgb - smooth).abs().max() < 0.05


def test_png_round_trip_is_lossless() -> None:
    picture = decode(file_of(Image.fromarray(gradient())), LIMIT)
    assert np.array_equal(levels(decode(encode(picture, "png"), LIMIT)), gradient())


def test_values_are_rounded_to_the_nearest_level_and_clamped() -> None:
    values = torch.tensor([-3.0, 0.4999 / 255, 0.5 / 255, 254.49 / 255, 254.5 / 255, 7.0])
    file = encode(Picture(values.expand(1, 3, 1, 6)), "png")
    assert list(levels(decode(file, LIMIT))[0, :, 0]) == [0, 0, 1, 254, 255, 255]


def test_the_exif_orientation_is_applied() -> None:
    image = Image.fromarray(gradient())
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = decode(file_of(image, "PNG", exif=exif), LIMIT)
    assert picture.size == (8, 12)
    assert np.array_equal(levels(picture), np.rot90(gradient(), -1))


def test_results_carry_no_metadata() -> None:
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    picture = decode(file_of(Image.fromarray(gradient()), "PNG", exif=exif), LIMIT)
    with Image.open(io.BytesIO(encode(picture, "png"))) as result:
        assert not result.getexif()
        assert "icc_profile" not in result.info


def test_colours_are_converted_from_the_files_profile_to_srgb() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A profile in which the first channel is blue and the third is red.
    swapped = srgb.replace(b"rXYZ", b"____", 1).replace(b"bXYZ", b"rXYZ", 1)
    swapped = swapped.replace(b"____", b"bXYZ", 1)
    image = Image.new("RGB", (4, 4), (255, 0, 0))
    red, green, blue = levels(decode(file_of(image, icc_profile=swapped), LIMIT))[0, 0]
    assert red < 5
    assert green < 5
    assert blue > 250


def test_an_srgb_profile_changes_nothing_that_can_be_seen() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = decode(file_of(Image.fromarray(gradient()), icc_profile=profile), LIMIT)
    assert np.abs(levels(picture).astype(int) - gradient().astype(int)).max() <= 1


def test_a_damaged_profile_is_ignored() -> None:
    picture = decode(file_of(Image.fromarray(gradient()), icc_profile=b"nonsense"), LIMIT)
    assert np.array_equal(levels(picture), gradient())


def test_alpha_is_kept_apart_from_the_colours() -> None:
    values = gradient(channels=4)
    picture = decode(file_of(Image.fromarray(values)), LIMIT)
    assert np.array_equal(levels(picture), values[..., :3])
    assert picture.alpha is not None
    assert np.array_equal((picture.alpha[0, 0] * 255).round().numpy(), values[..., 3])


def test_alpha_is_upscaled_and_written() -> None:
    alpha = torch.zeros(1, 1, 4, 4)
    alpha[..., 2:] = 1
    larger = Picture(torch.rand(1, 3, 4, 4), alpha).alpha_at(16, 16)
    assert larger is not None
    assert larger.shape == (1, 1, 16, 16)
    assert torch.equal(larger, larger.clamp(0, 1))
    for format in ("png", "webp"):
        again = decode(encode(Picture(torch.rand(1, 3, 16, 16), larger), format), LIMIT)
        assert again.alpha is not None
        assert (again.alpha - larger).abs().max() < 0.01


def test_transparent_pixels_are_white_in_a_jpeg() -> None:
    picture = Picture(torch.zeros(1, 3, 16, 16), torch.zeros(1, 1, 16, 16))
    again = decode(encode(picture, "jpeg"), LIMIT)
    assert again.alpha is None
    assert again.rgb.min() > 0.99


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LA", "RGBA"])
def test_other_kinds_of_pixels_become_rgb(mode: str) -> None:
    image = Image.fromarray(gradient()).convert(mode)
    format = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    picture = decode(file_of(image, format), LIMIT)
    assert picture.rgb.shape == (1, 3, 8, 12)
    assert (picture.alpha is not None) == (mode in ("LA", "RGBA"))


def test_a_palettes_transparent_colour_becomes_alpha() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    picture = decode(file_of(image, transparency=1), LIMIT)
    assert picture.alpha is not None
    assert picture.alpha.flatten().tolist() == [1.0, 0.0]
    assert picture.rgb[0, :, 0, 0].tolist() == [1.0, 0.0, 0.0]


def test_greyscale_of_16_bits_keeps_its_precision() -> None:
    values = np.array([[0, 1, 256, 65535]], dtype=np.uint16)
    picture = decode(file_of(Image.fromarray(values)), LIMIT)
    assert torch.equal(picture.rgb[0, 0], picture.rgb[0, 2])
    assert (picture.rgb[0, 0, 0] * 65535).round().tolist() == [0, 1, 256, 65535]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("part", [0.2, 0.6, 0.95])
def test_a_file_that_is_cut_off_is_refused(format: str, part: float) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = file_of(Image.fromarray(noise), format)
    with pytest.raises(ImageError):
        decode(data[: int(len(data) * part)], LIMIT)


def test_a_truncated_png_says_so_in_one_sentence() -> None:
    data = file_of(Image.fromarray(gradient(64, 64)))
    with pytest.raises(ImageTruncated, match=r"^The file is cut off or broken: .*\.$"):
        decode(data[:-40], LIMIT)


def test_bytes_that_are_no_image_are_refused() -> None:
    with pytest.raises(UnsupportedFormat, match="The 11 bytes are not"):
        decode(b"hello world", LIMIT)


def test_a_format_outside_the_list_is_refused() -> None:
    with pytest.raises(UnsupportedFormat):
        decode(file_of(Image.fromarray(gradient()), "BMP"), LIMIT)


def test_a_bomb_is_refused_by_its_header() -> None:
    with pytest.raises(ImageTooLarge, match="100000 x 100000 = 10000000000 pixels"):
        decode(png_header(100_000, 100_000), LIMIT)


def test_an_animation_is_refused() -> None:
    frames = [Image.new("RGB", (4, 4), (value, 0, 0)) for value in (0, 90, 200)]
    data = file_of(frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(ImageAnimated, match="has 3 frames"):
        decode(data, LIMIT)


def test_the_first_picture_of_a_cameras_jpeg_is_taken() -> None:
    pictures = [Image.new("RGB", (16, 16), (value, 0, 0)) for value in (200, 0)]
    data = file_of(pictures[0], "MPO", save_all=True, append_images=pictures[1:])
    assert decode(data, LIMIT).rgb[0, 0].mean() > 0.7


def test_floating_point_pixels_are_refused() -> None:
    image = Image.fromarray(np.full((2, 2), 1e9, dtype=np.float32))
    with pytest.raises(UnsupportedFormat, match="kind F"):
        decode(file_of(image, "TIFF"), LIMIT)


def test_a_result_too_large_for_its_format_is_refused_before_it_is_computed() -> None:
    check_side(16_383, 10, "webp")
    check_side(16_384, 10, "png")
    with pytest.raises(OutputTooLarge, match="webp file has at most 16383"):
        check_side(16_384, 10, "webp")
