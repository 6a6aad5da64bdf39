"""Blocks are found where programs put them, and read within bounds."""

from __future__ import annotations

import struct
import zlib

import pytest
from PIL import Image

from tests.worker.image_files import file_of
from worker.images.blocks import MAX_BLOCK, XMP_KEYWORD, read

PIXELS = Image.new("RGB", (8, 8))
TIFF_BLOCK = b"II*\0\x08\0\0\0\0\0"


def png(*chunks: tuple[bytes, bytes], behind: bool = False) -> bytes:
    """With these chunks before the pixels, or behind them."""
    data = file_of(PIXELS)
    place = data.index(b"IEND" if behind else b"IDAT") - 4
    more = b""
    for kind, body in chunks:
        check = struct.pack(">I", zlib.crc32(kind + body))
        more += struct.pack(">I", len(body)) + kind + body + check
    return data[:place] + more + data[place:]


def jpeg(*segments: tuple[int, bytes]) -> bytes:
    data = file_of(PIXELS, "JPEG")
    more = b"".join(struct.pack(">BBH", 0xFF, m, len(body) + 2) + body for m, body in segments)
    return data[:2] + more + data[2:]


def raw_profile(name: bytes, block: bytes) -> tuple[bytes, bytes]:
    """As ImageMagick writes it."""
    text = b"\n" + name + b"\n%8d\n" % len(block) + block.hex().encode() + b"\n"
    return b"zTXt", b"Raw profile type " + name + b"\0\0" + zlib.compress(text)


def photoshop(iptc: bytes) -> bytes:
    resources = b"8BIM\x03\xed\0\0" + struct.pack(">I", 3) + b"abc\0"
    return (
        b"Photoshop 3.0\0" + resources + struct.pack(">4sHHI", b"8BIM", 0x404, 0, len(iptc)) + iptc
    )


@pytest.mark.parametrize("behind", [False, True])
def test_texts_of_a_png_are_read_before_its_pixels_and_behind_them(behind: bool) -> None:
    chunks = (
        (b"tEXt", b"Author\0M\xfcller"),
        (b"zTXt", b"Title\0\0" + zlib.compress(b"a title")),
        (b"iTXt", b"Copyright\0\1\0de\0\0" + zlib.compress("© Ж".encode())),
        (b"iTXt", XMP_KEYWORD + bytes(5) + b"<xmp/>"),
        (b"eXIf", TIFF_BLOCK),
        (b"pHYs", struct.pack(">IIB", 11811, 5906, 1)),
    )
    blocks = read(png(*chunks, behind=behind), "PNG")
    assert blocks.texts == {"author": ["Müller"], "title": ["a title"], "copyright": ["© Ж"]}
    assert (blocks.xmp, blocks.exif) == (b"<xmp/>", TIFF_BLOCK)
    assert blocks.density == pytest.approx((300, 150), abs=0.02)
    assert blocks.faults == []


def test_profiles_that_imagemagick_writes_as_text_are_read() -> None:
    iptc = b"\x1c\x02\x05\0\1a"
    chunks = [raw_profile(b"exif", b"Exif\0\0" + TIFF_BLOCK), raw_profile(b"xmp", b"<xmp/>")]
    blocks = read(png(*chunks, raw_profile(b"iptc", photoshop(iptc))), "PNG")
    assert (blocks.exif, blocks.xmp, blocks.iptc) == (TIFF_BLOCK, b"<xmp/>", iptc)


def test_a_text_that_unpacks_to_more_than_the_bound_is_dropped_and_the_rest_read() -> None:
    bomb = zlib.compress(bytes(64 * MAX_BLOCK))
    chunks = [(b"zTXt", b"Title\0\0" + bomb)] * 50 + [(b"tEXt", b"Author\0a")]
    blocks = read(png(*chunks), "PNG")
    assert blocks.texts == {"author": ["a"]}
    assert blocks.faults == ["zTXt"]


def test_of_several_blocks_of_a_jpeg_the_first_counts() -> None:
    later = TIFF_BLOCK + b"later"
    exif = [(0xE1, b"Exif\0\0" + block) for block in (TIFF_BLOCK, later)]
    xmp = [(0xE1, b"http://ns.adobe.com/xap/1.0/\0<xmp%d/>" % number) for number in (1, 2)]
    blocks = read(jpeg(*exif, *xmp), "JPEG")
    assert (blocks.exif, blocks.xmp) == (TIFF_BLOCK, b"<xmp1/>")


def test_iptc_goes_on_in_further_segments() -> None:
    iptc = b"\x1c\x02\x78\x70\0" + bytes(0x7000)
    block = photoshop(iptc)
    first, second = block[:20_000], b"Photoshop 3.0\0" + block[20_000:]
    assert read(jpeg((0xED, first), (0xED, second)), "JPEG").iptc == iptc


@pytest.mark.parametrize("unit", [(0, None), (1, (300, 150)), (2, (762, 381)), (9, None)])
def test_a_density_has_a_unit(unit: tuple[int, tuple[int, int] | None]) -> None:
    number, wanted = unit
    data = bytearray(file_of(PIXELS, "JPEG", dpi=(300, 150)))
    data[13] = number
    assert read(bytes(data), "JPEG").density == (wanted and pytest.approx(wanted))


def test_broken_resources_cost_no_more_than_themselves() -> None:
    broken = (0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x04\0")
    blocks = read(jpeg(broken, (0xE1, b"Exif\0\0" + TIFF_BLOCK)), "JPEG")
    assert (blocks.exif, blocks.faults) == (TIFF_BLOCK, ["iptc"])


def test_a_format_without_metadata_has_none() -> None:
    assert read(file_of(PIXELS, "GIF"), "GIF").faults == []
    assert read(file_of(PIXELS, "BMP", dpi=(300, 300)), "BMP").density == pytest.approx(
        (300, 300), abs=0.02
    )
