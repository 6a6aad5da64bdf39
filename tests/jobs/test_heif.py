"""What the boxes of AVIF and HEIC files say of their image."""

from __future__ import annotations

import struct
import sys
from dataclasses import replace

import pytest

from jobs.errors import ImageError, ImageTooLarge, ImageTruncated
from jobs.formats import examine
from jobs.image_file import SRGB, Header, colours_of_cicp
from tests.worker.images.levels import FILES

P3 = colours_of_cicp("HEIC", 12, 13)
# HEVC codes blocks, of which a clean aperture is shown.
HEIC = Header("HEIC", 64, 48, colours=SRGB, coded_pixels=64 * 64)
AVIF = replace(HEIC, format="AVIF", coded_pixels=64 * 48)


def header(name: str) -> Header:
    return examine((FILES / name).read_bytes(), sys.maxsize)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rgb.heic", HEIC),
        ("rgba.heic", replace(HEIC, mode="RGBA")),
        ("grey.heic", replace(HEIC, mode="L")),
        ("ten-bits.heic", replace(HEIC, depth=10)),
        ("grey-ten-bits.heic", replace(HEIC, mode="L", depth=10)),
        ("turned.heic", replace(HEIC, width=48, height=64)),
        ("p3.heic", replace(HEIC, colours=P3)),
        # Of several images the primary one.
        ("two.heic", HEIC),
        ("p3.avif", replace(AVIF, colours=P3)),
        ("clap.avif", replace(AVIF, width=32, height=32, coded_pixels=64 * 64)),
        ("grey-alpha.avif", replace(AVIF, mode="LA")),
        ("grey-limited.avif", replace(AVIF, mode="L", narrow_range=True)),
        ("premultiplied.avif", replace(AVIF, mode="RGBA", is_premultiplied=True)),
    ],
)
def test_a_header_says_what_the_file_is(name: str, expected: Header) -> None:
    assert header(name) == expected


@pytest.mark.parametrize("name", ["rgb.heic", "p3.avif"])
def test_a_file_cut_anywhere_is_noticed(name: str) -> None:
    data = (FILES / name).read_bytes()
    for end in range(32, len(data) - 1):
        with pytest.raises(ImageError):
            examine(data[:end], sys.maxsize)
    with pytest.raises(ImageTruncated, match="inside the mdat box"):
        examine(data[:-1], sys.maxsize)


def changed(name: str, kind: bytes, offset: int, value: bytes) -> bytes:
    """A file with other bytes so far behind the name of a box."""
    data = (FILES / name).read_bytes()
    place = data.index(kind) + 4 + offset
    return data[:place] + value + data[place + len(value) :]


@pytest.mark.parametrize("name", ["rgb.heic", "p3.avif"])
def test_a_property_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ImageError, match=r"names a property 127|header cannot be read"):
        examine(changed(name, b"ipma", 11, b"\x7f"), sys.maxsize)


@pytest.mark.parametrize("aperture", [(33, 2), (65, 1), (0, 1), (32, 0)])
def test_a_clean_aperture_of_no_whole_size_is_refused(aperture: tuple[int, int]) -> None:
    data = changed("clap.avif", b"clap", 0, struct.pack(">II", *aperture))
    with pytest.raises(ImageError, match=r"clean aperture|header cannot be read"):
        examine(data, sys.maxsize)


def test_an_image_cut_out_of_a_large_one_is_judged_by_the_large_one() -> None:
    data = (FILES / "clap.avif").read_bytes()
    examine(data, 64 * 64)
    with pytest.raises(ImageTooLarge, match="cut out of one of 4096 pixels; at most 4095"):
        examine(data, 64 * 64 - 1)


def test_a_heic_that_says_two_sizes_is_judged_by_the_one_that_is_decoded() -> None:
    data = changed("rgb.heic", b"ispe", 4, struct.pack(">II", 20_000, 20_000))
    with pytest.raises(ImageTooLarge, match="cut out of one of 400000000 pixels"):
        examine(data, 40_000_000)
