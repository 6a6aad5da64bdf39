"""What is written can be read again, whole or not at all, and says nothing but its pixels."""

from __future__ import annotations

import io
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import Tensor

from jobs.errors import OutputTooLarge
from jobs.image_file import MAX_TIFF_PIXELS, RESULT_TYPES
from models.parameters import OutputFormat
from tests.worker.image_files import ramp16, tiff_of
from worker.images import DecodedImage, Depth, check_side, decode, write

LIMIT = 1_000_000
EVERY: tuple[OutputFormat, ...] = ("png", "webp", "jpeg", "tiff")
LOSSLESS: tuple[OutputFormat, ...] = ("png", "tiff")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "result.part"


def written(
    path: Path, pixels: Tensor, format: OutputFormat, depth: Depth = 8, *, strip: int = 50
) -> bytes:
    """The file of a (C, H, W) image that comes in strips."""
    channels, height, width = pixels.shape
    rows = (pixels[:, top : top + strip] for top in range(0, height, strip))
    write(path, rows, width=width, height=height, channels=channels, format=format, depth=depth)
    return path.read_bytes()


def planes(image: DecodedImage) -> Tensor:
    """(C, H, W), the opacity last."""
    colours = image.rgb[0, :1] if image.grey else image.rgb[0]
    return colours if image.alpha is None else torch.cat([colours, image.alpha[0]])


def smooth(channels: int, height: int = 48, width: int = 64) -> Tensor:
    across = torch.linspace(0, 1, width).expand(height, width)
    down = torch.linspace(1, 0.2, height)[:, None].expand(height, width)
    return torch.stack([across, across.flip(1), down, down][:channels])


def metadata(data: bytes) -> dict[str, Any]:
    with Image.open(io.BytesIO(data)) as image:
        assert not image.getexif().get_ifd(0x8769)
        return {"mode": image.mode, "profile": image.info.get("icc_profile")}


@pytest.mark.parametrize("strip", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("format", LOSSLESS)
def test_lossless_files_give_back_every_level(
    path: Path, format: OutputFormat, depth: Depth, channels: int, strip: int
) -> None:
    height, width, top = 130, 9, 2**depth - 1
    count = channels * height * width
    levels = torch.arange(count).mul(2654435761).remainder(top + 1)
    levels = levels.reshape(channels, height, width)
    if channels in (2, 4):
        levels[-1].clamp_(min=1)  # what is hidden may change
    data = written(path, levels / top, format, depth, strip=strip)
    image = decode(data, LIMIT)
    assert (image.channels, image.depth, image.size) == (channels, depth, (width, height))
    assert torch.equal((planes(image) * top).round().long(), levels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("format", LOSSLESS)
def test_another_reader_sees_the_same_levels(
    path: Path, format: OutputFormat, channels: int
) -> None:
    levels = torch.arange(channels * 35).remainder(256).reshape(channels, 5, 7)
    written(path, levels / 255, format)
    with Image.open(path) as image:
        found = np.asarray(image).reshape(5, 7, channels)
    assert np.array_equal(found, levels.permute(1, 2, 0).numpy())


def test_a_16_bit_gradient_survives_reading_writing_and_reading(path: Path) -> None:
    values = ramp16(3)
    source = tiff_of(values.tobytes(), 21, 13, photometric=2, bits=(16, 16, 16))
    first = decode(source, LIMIT)
    for format in LOSSLESS:
        again = decode(written(path, planes(first), format, 16), LIMIT)
        assert (again.rgb - first.rgb).abs().max() < 0.01 / 65535


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("format", EVERY)
def test_every_output_format_is_one_that_is_read(
    path: Path, format: OutputFormat, channels: int
) -> None:
    pixels = smooth(channels)
    image = decode(written(path, pixels, format), LIMIT)
    wanted = pixels
    if format == "jpeg" and channels in (2, 4):
        wanted = pixels[:-1] * pixels[-1:] + 1 - pixels[-1:]
    if format == "webp" and channels < 3:  # has no grey
        wanted = torch.cat([pixels[:1].expand(3, -1, -1), pixels[1:]])
    found = planes(image)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 0.05


@pytest.mark.parametrize("format", ["webp", "jpeg"])
def test_formats_of_8_bits_take_images_of_16(path: Path, format: OutputFormat) -> None:
    assert decode(written(path, smooth(3), format, 16), LIMIT).depth == 8


@pytest.mark.parametrize("depth", [8, 16])
def test_values_are_rounded_to_the_nearest_level_and_clamped(path: Path, depth: Depth) -> None:
    top = 2**depth - 1
    values = torch.tensor([-3 * top, 0.45, 0.55, top - 0.55, top - 0.45, 7 * top]) / top
    image = decode(written(path, values.expand(3, 1, 6), "png", depth), LIMIT)
    found = (image.rgb[0, 0, 0] * top).round().long().tolist()
    assert found == [0, 0, 1, top - 1, top, top]


def test_a_half_is_rounded_up(path: Path) -> None:
    values = torch.tensor([0.5, 1.5, 2.5]) / 255
    image = decode(written(path, values.expand(3, 1, 3), "png"), LIMIT)
    assert (image.rgb[0, 0, 0] * 255).round().tolist() == [1, 2, 3]


def test_transparent_pixels_are_white_in_a_jpeg(path: Path) -> None:
    image = decode(written(path, torch.zeros(4, 16, 16), "jpeg"), LIMIT)
    assert image.alpha is None
    assert image.rgb.min() > 0.99


def chunks(png: bytes) -> Iterator[str]:
    position = 8
    while position < len(png):
        length, kind = struct.unpack_from(">I4s", png, position)
        yield kind.decode()
        position += 12 + length


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_says_that_it_is_srgb_and_nothing_else(path: Path, channels: int) -> None:
    found = list(chunks(written(path, smooth(channels), "png")))
    assert found[:2] == ["IHDR", "sRGB"]
    assert set(found[2:]) == {"IDAT", "IEND"}


@pytest.mark.parametrize("format", ["webp", "jpeg", "tiff"])
def test_other_coloured_results_carry_a_small_srgb_profile(
    path: Path, format: OutputFormat
) -> None:
    for channels in (3, 4):
        profile = metadata(written(path, smooth(channels), format))["profile"]
        assert len(profile) < 1000
        name = ImageCms.getProfileName(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
        assert "sRGB" in name


@pytest.mark.parametrize("format", ["jpeg", "tiff"])
def test_grey_results_are_stored_grey_and_without_a_profile(
    path: Path, format: OutputFormat
) -> None:
    found = metadata(written(path, smooth(1), format))
    assert found == {"mode": "L", "profile": None}


@pytest.mark.parametrize("came", [0, 9, 11, 200])
@pytest.mark.parametrize("format", EVERY)
def test_rows_that_are_too_few_or_too_many_are_an_error(
    path: Path, format: OutputFormat, came: int
) -> None:
    with pytest.raises(ValueError, match="10 rows were announced"):
        write(
            path,
            [torch.zeros(3, came, 8)],
            width=8,
            height=10,
            channels=3,
            format=format,
            depth=8,
        )


def test_rows_of_another_shape_are_an_error(path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows must be \(3, 'n', 8\); got \(4, 10, 8\)"):
        write(
            path,
            [torch.zeros(4, 10, 8)],
            width=8,
            height=10,
            channels=3,
            format="png",
            depth=8,
        )


@pytest.mark.parametrize("format", EVERY)
def test_a_path_that_cannot_be_written_is_an_os_error(tmp_path: Path, format: OutputFormat) -> None:
    with pytest.raises(OSError, match="missing"):
        written(tmp_path / "missing" / "result.part", smooth(3), format)


@pytest.mark.parametrize("format", LOSSLESS)
def test_the_memory_of_a_streamed_file_does_not_grow_with_its_height(
    path: Path, format: OutputFormat
) -> None:
    def peak(height: int) -> int:
        strip = torch.zeros(3, 32, 512)
        tracemalloc.start()
        write(
            path,
            (strip for _ in range(height // 32)),
            width=512,
            height=height,
            channels=3,
            format=format,
            depth=16,
        )
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(64)  # what is made once
    assert peak(2048) < 1.1 * peak(256)


def test_a_result_too_large_for_its_format_is_refused_before_it_is_computed(path: Path) -> None:
    check_side(16_383, 10, "webp")
    check_side(16_384, 10, "png")
    check_side(MAX_TIFF_PIXELS // 4, 4, "tiff")
    with pytest.raises(OutputTooLarge, match="webp file has at most 16383"):
        check_side(16_384, 10, "webp")
    with pytest.raises(OutputTooLarge, match="jpeg file has at most 65535"):
        check_side(10, 65_536, "jpeg")
    with pytest.raises(OutputTooLarge, match="4 GiB"):
        check_side(MAX_TIFF_PIXELS // 4 + 1, 4, "tiff")
    with pytest.raises(OutputTooLarge):
        write(path, [], width=16_384, height=1, channels=3, format="webp", depth=8)
    assert not path.exists()


def test_every_output_format_has_its_media_type() -> None:
    assert {format: f"image/{format}" for format in EVERY} == RESULT_TYPES
