"""What is decoded and what is refused, and JPEG files with a blemish: read, pixel for pixel."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs.errors import (
    ImageAnimated,
    ImageError,
    ImageTooLarge,
    ImageTruncated,
    UnsupportedFormat,
)
from tests.worker.image_files import file_of, gradient, png_of, tiff_of
from worker.images import decode
from worker.images.decoding import without_blemishes

LIMIT = 1_000_000

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'


def noise(side: int = 64) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


def png_announcing(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds next to nothing, with every checksum right."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 100)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("part", [0.2, 0.6, 0.95])
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {}),
    ],
)
def test_a_file_that_is_cut_off_is_refused(
    format: str, options: dict[str, Any], part: float
) -> None:
    data = file_of(noise(), format, **options)
    with pytest.raises(ImageError):
        decode(data[: int(len(data) * part)], LIMIT)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_with_pixels_missing_before_a_proper_end_is_truncated(progressive: bool) -> None:
    data = file_of(noise(), "JPEG", progressive=progressive)
    with pytest.raises(ImageTruncated, match="premature end of data"):
        decode(data[: len(data) // 2] + b"\xff\xd9", LIMIT)


def test_a_png_whose_pixels_end_too_early_is_truncated() -> None:
    with pytest.raises(ImageTruncated, match=r"^The file is cut off or broken: .*\.$"):
        decode(png_announcing(64, 64), LIMIT)


def test_a_tiff_whose_packed_pixels_are_broken_is_truncated() -> None:
    data = bytearray(file_of(noise(), "TIFF", compression="tiff_adobe_deflate"))
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    with pytest.raises(ImageTruncated):
        decode(bytes(data), LIMIT)


def test_a_webp_that_announces_another_size_than_it_has_is_refused() -> None:
    image = Image.fromarray(gradient(16, 16, 4))
    data = bytearray(file_of(image, "WEBP", lossless=True, exif=b"Exif\0\0x"))
    assert data[12:16] == b"VP8X"
    data[24] += 1
    with pytest.raises(ImageError):
        decode(bytes(data), LIMIT)


@pytest.mark.parametrize("tail", [b"junk", bytes(100)])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_bytes_behind_the_end_do_no_harm(format: str, tail: bytes) -> None:
    assert decode(file_of(noise(16), format) + tail, LIMIT).size == (16, 16)


def test_a_tiff_with_tags_of_its_own_is_read() -> None:
    data = tiff_of(bytes(4), 2, 2, photometric=1, bits=(8,), tags={37724: (1, 2, 3), 65000: (7,)})
    assert decode(data, LIMIT).size == (2, 2)


def test_bytes_that_are_no_image_are_refused() -> None:
    with pytest.raises(UnsupportedFormat, match="none of PNG, JPEG, WEBP, TIFF, AVIF"):
        decode(b"hello world", LIMIT)


@pytest.mark.parametrize("format", ["TGA", "PCX", "ICO", "PPM"])
def test_a_format_outside_the_list_is_refused(format: str) -> None:
    with pytest.raises(UnsupportedFormat):
        decode(file_of(Image.fromarray(gradient()), format), LIMIT)


def test_the_decoder_knows_no_other_format_and_opens_no_files(tmp_path: Path) -> None:
    gif = file_of(Image.new("P", (4, 4)), "GIF")
    for data in (SVG, gif):
        with pytest.raises(pyvips.Error, match="not in a known format"):
            pyvips.Image.new_from_buffer(data, "")
    path = tmp_path / "whole.png"
    path.write_bytes(file_of(noise(8)))
    with pytest.raises(pyvips.Error):
        pyvips.Image.new_from_file(str(path))
    with pytest.raises(pyvips.Error, match="blocked"):
        pyvips.Image.rawload(str(path), 4, 4, 1)


def test_the_decoder_keeps_no_image_for_later() -> None:
    decode(file_of(noise()), LIMIT)
    assert pyvips.cache_get_size() == 0


def test_a_bomb_is_refused_by_its_header() -> None:
    with pytest.raises(ImageTooLarge, match="100000 x 100000 = 10000000000 pixels"):
        decode(png_announcing(100_000, 100_000), LIMIT)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_an_animation_is_refused(format: str) -> None:
    frames = [Image.new("RGB", (16, 16), (value, 0, 0)) for value in (0, 90, 200)]
    data = file_of(frames[0], format, save_all=True, append_images=frames[1:])
    with pytest.raises(ImageAnimated, match=r"more than one frame|has 3 pages"):
        decode(data, LIMIT)
    first = decode(data, LIMIT, page=1).rgb[0, 0, 8, 8]
    assert float(first) < 0.05


def test_the_first_image_of_a_cameras_jpeg_is_taken() -> None:
    images = [Image.new("RGB", (16, 16), (value, 0, 0)) for value in (200, 0)]
    data = file_of(images[0], "MPO", save_all=True, append_images=images[1:])
    assert decode(data, LIMIT).rgb[0, 0].mean() > 0.7


@pytest.mark.parametrize(
    ("bits", "sample_format", "pixel"),
    [((32,), 3, bytes(4)), ((16,), 3, bytes(2)), ((32,), 1, bytes(4)), ((16,), 2, bytes(2))],
)
def test_numbers_that_are_no_levels_are_refused(
    bits: tuple[int, ...], sample_format: int, pixel: bytes
) -> None:
    data = tiff_of(pixel * 4, 2, 2, photometric=1, bits=bits, tags={339: (sample_format,)})
    with pytest.raises(UnsupportedFormat, match="save it with 8 or 16 bits a channel"):
        decode(data, LIMIT)


@pytest.mark.parametrize(
    ("photometric", "name"), [(8, "CIELab"), (9, "ICCLab"), (32803, "of a camera"), (7, "kind 7")]
)
def test_tiffs_in_other_colour_spaces_are_refused(photometric: int, name: str) -> None:
    data = tiff_of(bytes(12), 2, 2, photometric=photometric, bits=(8, 8, 8))
    with pytest.raises(UnsupportedFormat, match=name):
        decode(data, LIMIT)


def test_a_tiff_packed_in_a_way_that_is_not_read_says_so() -> None:
    data = file_of(noise(), "TIFF", compression="zstd")
    with pytest.raises(UnsupportedFormat, match="compressed by Zstandard"):
        decode(data, LIMIT)


def test_one_pixel_is_an_image() -> None:
    assert decode(png_of(gradient(1, 1), bits=8), LIMIT).size == (1, 1)


WHOLE = {
    "png": file_of(noise(24)),
    "palette": file_of(noise(24).quantize(32), transparency=bytes(range(32))),
    "interlaced": png_of(gradient(24, 24), bits=8, interlaced=True),
    "jpeg": file_of(noise(24), "JPEG"),
    "progressive": file_of(noise(24).convert("CMYK"), "JPEG", progressive=True),
    "webp": file_of(noise(24), "WEBP"),
    "lossless": file_of(noise(24), "WEBP", lossless=True),
    "tiff": tiff_of(bytes(24 * 24 * 6), 24, 24, photometric=2, bits=(16, 16, 16)),
    "lzw": file_of(noise(24), "TIFF", compression="tiff_lzw"),
    "avif": file_of(noise(24), "AVIF", speed=10),
}


@given(data=st.data())
@pytest.mark.parametrize("kind", WHOLE)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_damaged_files_are_read_or_refused_and_nothing_else(data: st.DataObject, kind: str) -> None:
    damaged = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    try:
        image = decode(bytes(damaged), LIMIT)
    except ImageError:
        return
    width, height = image.size
    assert width * height <= LIMIT


STRAY = b"\x12\x00\x34"


def jpeg(*, progressive: bool, **options: object) -> bytes:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (80, 96, 3), dtype=np.uint8))
    return file_of(noise, "JPEG", progressive=progressive, **options)


def inserted(data: bytes, at: int, what: bytes) -> bytes:
    return data[:at] + what + data[at:]


def blemished(data: bytes, blemish: str) -> bytes:
    match blemish:
        case "before the end":
            return inserted(data, len(data) - 2, STRAY * 3)
        case "filled up before the end":
            return inserted(data, len(data) - 2, STRAY + b"\xff\xff")
        case "between segments":
            return inserted(data, data.index(b"\xff\xdb"), STRAY)
        case "before a scan":
            return inserted(data, data.rindex(b"\xff\xda"), STRAY)
        case "revision 2":
            return data[:11] + b"\x02" + data[12:]
        case _:
            every = ("between segments", "before a scan", "revision 2", "before the end")
            for one in every:
                data = blemished(data, one)
            return data


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(
    "blemish",
    [
        "before the end",
        "filled up before the end",
        "between segments",
        "before a scan",
        "revision 2",
        "all at once",
    ],
)
def test_a_jpeg_with_a_blemish_is_read_as_without(blemish: str, progressive: bool) -> None:
    whole = jpeg(progressive=progressive)
    data = blemished(whole, blemish)
    assert data != whole
    Image.open(io.BytesIO(data)).load()
    assert torch.equal(decode(data, LIMIT).rgb, decode(whole, LIMIT).rgb)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("blemish", ["between segments", "before a scan", "revision 2"])
def test_a_blemish_hides_no_missing_pixels(blemish: str, progressive: bool) -> None:
    data = blemished(jpeg(progressive=progressive), blemish)
    scan = data.rindex(b"\xff\xda")
    for end in ((scan + len(data)) // 2, len(data) - 60):
        with pytest.raises(ImageTruncated, match="premature end of data"):
            decode(data[:end] + b"\xff\xd9", LIMIT)
        with pytest.raises(ImageTruncated):
            decode(data[:end], LIMIT)


def test_an_interval_whose_marker_was_lost_is_missing() -> None:
    data = jpeg(progressive=False, restart_marker_rows=1)
    last = data.rindex(b"\xff\xd3")
    with pytest.raises(ImageTruncated, match="extraneous bytes before marker 0xd9"):
        decode(data[:last] + data[last + 2 :], LIMIT)


def test_nothing_is_taken_from_a_file_without_blemishes() -> None:
    for data in (jpeg(progressive=False), jpeg(progressive=True, restart_marker_rows=1)):
        assert without_blemishes(data) == data
        assert without_blemishes(data + b"behind\xff\xc0\x00") == data + b"behind\xff\xc0\x00"
        for end in range(2, len(data), 97):
            assert data.startswith(without_blemishes(data[:end])[: end - 1])


def test_what_is_no_jpeg_at_all_takes_no_longer_than_its_bytes() -> None:
    for data in (b"\xff\xd8" + b"\xff" * 10**6, b"\xff\xd8" + b"\xff\x00" * 10**6):
        assert without_blemishes(data) == data
