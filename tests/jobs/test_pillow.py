"""GIF, BMP and JPEG 2000 headers: what Pillow writes, and what is wrong with a file."""

from __future__ import annotations

import struct
import sys
import time

import pytest

from jobs.errors import ImageAnimated, ImageError, ImageTruncated, UnsupportedFormat
from jobs.formats import examine
from jobs.image_file import Header
from tests.service.pictures import animated, picture

KINDS = ("GIF", "BMP", "JPEG2000")


def header(data: bytes) -> Header:
    return examine(data, sys.maxsize)


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_cut_off_is_called_so(kind: str, cut: float) -> None:
    data = picture(kind, 60, 40)
    with pytest.raises(ImageTruncated):
        header(data[: int(len(data) * cut)])


def test_a_header_that_says_too_little_is_refused_without_what_lies_in_memory() -> None:
    data = bytearray(picture("JPEG2000", 60, 40))
    # A number of channels that there is not.
    data[data.index(b"ihdr") + 12] ^= 0xFF
    with pytest.raises(ImageError, match=r"its header cannot be read\.$"):
        header(bytes(data))


def test_a_gif_of_several_frames_is_no_still_image() -> None:
    with pytest.raises(ImageAnimated, match="more than one frame; page=1 takes"):
        header(animated("GIF"))


def test_a_gif_without_an_image_is_refused() -> None:
    with pytest.raises(ImageError, match="it has no image"):
        header(b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b";")


def test_a_block_that_gif_does_not_have_is_refused() -> None:
    with pytest.raises(ImageError, match="block at byte 13 is of no kind"):
        header(b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b"?" + bytes(40))


@pytest.mark.parametrize(
    "piece",
    [b"!\xfe\0", b"\1x"],
    ids=["empty blocks", "a block of short pieces"],
)
def test_a_gif_of_too_many_parts_is_refused_soon(piece: bytes) -> None:
    head = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0)
    start = b"" if piece[:1] == b"!" else b"!\xfe"
    data = head + start + piece * (20_000_000 // len(piece))
    began = time.process_time()
    with pytest.raises(ImageError, match="more than"):
        header(data)
    assert time.process_time() - began < 2


def test_a_jpeg_2000_of_too_many_boxes_is_refused_soon() -> None:
    start = picture("JPEG2000")[:12]
    for data in (
        start + b"\0\0\0\x08free" * 1_000_000,
        start + struct.pack(">I", 8_000_008) + b"jp2h" + b"\0\0\0\x08free" * 1_000_000,
    ):
        with pytest.raises(ImageError, match="more than 65536 boxes"):
            header(data)


def test_a_jpeg_2000_of_inks_is_not_read() -> None:
    with pytest.raises(UnsupportedFormat, match="its mode is CMYK"):
        header(picture("JPEG2000", mode="CMYK"))


def gif_of(screen: tuple[int, int], place: tuple[int, int]) -> bytes:
    """An image of 24 x 16 somewhere on a screen."""
    data = picture("GIF")
    at = data.index(b",", 13 + 3 * 2 ** (1 + (data[10] & 7)))
    data = data[:6] + struct.pack("<HH", *screen) + data[10:]
    return data[: at + 1] + struct.pack("<HH", *place) + data[at + 5 :]


@pytest.mark.parametrize(
    ("screen", "place", "size", "mode"),
    [
        ((24, 16), (0, 0), (24, 16), "RGB"),
        ((40, 30), (8, 8), (40, 30), "RGBA"),
        ((24, 30), (0, 0), (24, 30), "RGBA"),
        ((0, 0), (0, 0), (24, 16), "RGB"),
        ((10, 40), (0, 0), (24, 40), "RGBA"),
    ],
)
def test_a_gif_shows_its_screen_which_its_image_may_not_fill(
    screen: tuple[int, int], place: tuple[int, int], size: tuple[int, int], mode: str
) -> None:
    found = header(gif_of(screen, place))
    assert (found.upright, found.mode) == (size, mode)


def test_colours_of_more_than_8_bits_in_a_jpeg_2000_are_refused() -> None:
    data = picture("JPEG2000")
    sizes = data.index(b"\xff\x4f\xff\x51") + 42
    for depth in (10, 16):
        deeper = data[:sizes] + bytes((depth - 1, 1, 1)) + data[sizes + 3 :]
        with pytest.raises(UnsupportedFormat, match=f"channels of {depth} bits"):
            header(deeper)
