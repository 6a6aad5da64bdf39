"""Headers are read like Pillow reads them, and a broken file never gets past."""

from __future__ import annotations

import io
import struct
import sys
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs.errors import (
    ImageAnimated,
    ImageError,
    ImageTruncated,
    PageNotFound,
    UnsupportedFormat,
)
from jobs.formats import FORMATS, examine
from jobs.image_file import Header
from tests.service.pictures import animated, picture, png_chunk
from tests.worker.image_files import file_of, gradient, png_of, ramp16, tiff_of

# Which Pillow writes, with an orientation too.
KINDS = sorted(set(FORMATS) - {"BMP", "GIF", "HEIC", "JPEG2000"})
WHOLE = {kind: picture(kind) for kind in KINDS}


def header(data: bytes, page: int | None = None) -> Header:
    return examine(data, sys.maxsize, page)


@pytest.mark.parametrize("kind", KINDS)
def test_the_format_is_told_by_the_content(kind: str) -> None:
    assert header(WHOLE[kind]).format == kind


@pytest.mark.parametrize("data", [b"", b"\x89PNG", bytes(40), b"Dear Ada, here is the image"])
def test_other_content_has_no_format(data: bytes) -> None:
    with pytest.raises(UnsupportedFormat, match="none of PNG, JPEG, WEBP, TIFF"):
        header(data)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"%PDF-1.7 ", "a PDF document"),
        (b"<svg xmlns='x'/>", "a drawing"),
        (b"<?xml version='1.0'?>", "a drawing"),
        (b"8BPS\0\1", "a Photoshop document"),
        (b"\xff\x0a\xfa", "a JPEG XL image"),
        (b"\0\0\0\x0cJXL \r\n", "a JPEG XL image"),
        (b"\0\0\0\x18ftyphevc\0\0\0\0msf1hevc", "a HEIC image"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomavc1", "a video"),
        (b"\0\0\0\x14ftypqt  \0\0\2\0qt  ", "a video"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a camera's raw file"),
        (b"II*\0\x10\0\0\0CR\2\0", "a camera's raw file"),
        (b"IIRO\x08\0\0\0", "a camera's raw file"),
        (b"IIU\0\x18\0\0\0", "a camera's raw file"),
        (b"FUJIFILMCCD-RAW 0201", "a camera's raw file"),
    ],
)
def test_what_people_send_besides_is_called_by_its_name(head: bytes, kind: str) -> None:
    with pytest.raises(UnsupportedFormat, match=f"The file is {kind}"):
        header(head + bytes(40))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "height"), [(1, 1), (24, 16), (333, 77)])
def test_the_size_is_the_one_that_pillow_reads(kind: str, width: int, height: int) -> None:
    found = header(picture(kind, width, height))
    assert (found.width, found.height, found.frames, found.format) == (width, height, 1, kind)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"progressive": True}),
        ("JPEG", {"mode": "L"}),
        ("JPEG", {"mode": "CMYK"}),
        ("JPEG", {"restart_marker_blocks": 1}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"mode": "RGBA"}),
        ("WEBP", {"lossless": True, "mode": "RGBA"}),
        ("PNG", {"mode": "1"}),
        ("PNG", {"mode": "RGBA"}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
    ],
)
def test_every_variant_of_a_format_is_read(kind: str, options: dict[str, Any]) -> None:
    mode = str(options.pop("mode", "RGB"))
    found = header(picture(kind, 40, 30, mode="L" if mode == "1" else mode, **options))
    assert (found.width, found.height) == (40, 30)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_upright_size_follows_the_orientation(kind: str, orientation: int) -> None:
    found = header(picture(kind, 40, 30, orientation=orientation))
    assert found.upright == ((30, 40) if orientation >= 5 else (40, 30))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "JPEG"])
def test_more_than_one_frame_is_noticed(kind: str) -> None:
    with pytest.raises(ImageAnimated):
        header(animated(kind))


@pytest.mark.parametrize(
    ("kind", "modes"),
    [
        ("PNG", {"1": "L", "L": "L", "LA": "LA", "P": "RGB", "RGB": "RGB", "RGBA": "RGBA"}),
        ("JPEG", {"L": "L", "RGB": "RGB", "YCbCr": "RGB", "CMYK": "CMYK"}),
        ("WEBP", {"L": "RGB", "RGB": "RGB", "RGBA": "RGBA"}),
        ("AVIF", {"L": "L", "RGB": "RGB", "RGBA": "RGBA"}),
        ("TIFF", {"1": "L", "L": "L", "LA": "LA", "P": "RGB", "RGB": "RGB", "RGBA": "RGBA"}),
        ("TIFF", {"CMYK": "CMYK", "YCbCr": "YCbCr"}),
    ],
)
def test_the_mode_is_what_a_decoder_gives(kind: str, modes: dict[str, str]) -> None:
    pixels = gradient(16, 16)
    for mode, wanted in modes.items():
        image = Image.fromarray(pixels).convert(mode)
        if mode.endswith("A"):
            image.putalpha(99)  # full opacity may be left out
        assert header(file_of(image, kind)).mode == wanted


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_depth_of_a_png_is_the_files(bits: int, channels: int) -> None:
    found = header(png_of(ramp16(channels), bits=bits))
    assert (found.mode, found.depth) == (("L", "LA", "RGB", "RGBA")[channels - 1], bits)


def test_a_palettes_colours_are_of_8_bits_and_its_transparency_is_opacity() -> None:
    image = Image.fromarray(gradient()).quantize(4)
    assert header(file_of(image)).depth == 8
    assert header(file_of(image, transparency=1)).mode == "RGBA"


@pytest.mark.parametrize(
    ("extra", "mode"),
    [
        ((), "RGBA"),
        ((0,), "RGB"),
        ((1,), "RGBA"),
        ((2,), "RGBA"),
        ((2, 0), "RGBA"),
        ((0, 2), "RGBA"),
        ((0, 0), "RGB"),
    ],
)
def test_opacity_is_what_a_tiff_calls_so_or_its_only_further_channel(
    extra: tuple[int, ...], mode: str
) -> None:
    channels = 3 + max(len(extra), 1)
    tags: dict[int, tuple[int, ...]] = {338: extra} if extra else {}
    data = tiff_of(bytes(2 * channels), 1, 1, photometric=2, bits=(16,) * channels, tags=tags)
    found = header(data)
    assert (found.mode, found.depth) == (mode, 16)


@pytest.mark.parametrize(
    ("photometric", "bits", "tags"),
    [
        (1, (32,), {339: (3,)}),
        (1, (16,), {339: (2,)}),
        (2, (16, 16, 16), {339: (3, 3, 3)}),
        (2, (8, 16, 8), {}),
        (2, (4, 4, 4), {}),
        (1, (12,), {}),
        (5, (8, 8, 8, 8), {332: (2,)}),
        (8, (8, 8, 8), {}),
        (1, (8,), {259: (34712,)}),
    ],
)
def test_a_tiff_that_is_not_read_is_known_by_its_header(
    photometric: int, bits: tuple[int, ...], tags: dict[int, tuple[int, ...]]
) -> None:
    data = tiff_of(bytes(64), 2, 2, photometric=photometric, bits=bits, tags=tags)
    with pytest.raises(UnsupportedFormat):
        header(data)


def test_a_preview_in_a_tiff_is_no_second_page() -> None:
    page, small = Image.new("L", (16, 12)), Image.new("L", (8, 6))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    assert header(file_of(page, "TIFF", save_all=True, append_images=[small])).width == 16
    small.encoderinfo = {"tiffinfo": {254: 0}}
    with pytest.raises(ImageAnimated):
        header(file_of(page, "TIFF", save_all=True, append_images=[small]))


def test_a_bigtiff_is_read() -> None:
    found = header(file_of(Image.new("RGB", (5, 3)), "TIFF", big_tiff=True))
    assert (found.width, found.height, found.mode) == (5, 3, "RGB")


def test_a_second_image_in_a_jpeg_does_not_count() -> None:
    """Phones append a gain map or a thumbnail (MPO); the first image counts."""
    frames = [Image.new("RGB", (16, 12)), Image.new("RGB", (8, 8))]
    buffer = io.BytesIO()
    frames[0].save(buffer, "MPO", save_all=True, append_images=frames[1:])
    found = header(buffer.getvalue())
    assert (found.width, found.height, found.frames) == (16, 12, 1)


def test_the_thumbnail_in_a_jpeg_does_not_hide_that_the_rest_is_missing() -> None:
    """The end marker of an embedded thumbnail is not the end of the image."""
    thumbnail = picture("JPEG", 8, 8)
    segment = b"Exif\0\0" + thumbnail
    start = b"\xff\xd8\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment
    whole = start + WHOLE["JPEG"][2:]
    assert header(whole).width == 24
    with pytest.raises(ImageTruncated):
        header(whole[:-20])


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_is_noticed(kind: str) -> None:
    data = WHOLE[kind]
    # A mark of the end says nothing else; what of a last block's details is missing the decoder
    # says.
    spared = {"PNG": {12}, "JPEG": {2, *range(3, 60)}}.get(kind, set())
    for end in sorted(set(range(32, len(data) - 1)) - {len(data) - size for size in spared}):
        with pytest.raises(ImageError):
            header(data[:end])


@pytest.mark.parametrize(("kind", "size"), [("PNG", 12), ("JPEG", 2)])
def test_a_file_that_lacks_only_the_mark_of_its_end_is_taken(kind: str, size: int) -> None:
    assert not header(WHOLE[kind]).lacks_end
    assert header(WHOLE[kind][:-size]) == replace(header(WHOLE[kind]), lacks_end=True)


@pytest.mark.parametrize(
    "options", [{"mode": "L"}, {"mode": "CMYK"}, {"subsampling": 0}, {"subsampling": 2}]
)
def test_every_jpeg_of_one_scan_may_lack_its_end(options: dict[str, Any]) -> None:
    data = picture("JPEG", 100, 80, **options)
    assert header(data[:-2]).lacks_end
    for end in (len(data) - 300, len(data) // 2):
        with pytest.raises(ImageTruncated, match="before its EOI marker"):
            header(data[:end])


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 1}])
def test_a_jpeg_of_several_parts_may_not_lack_its_end(options: dict[str, Any]) -> None:
    """Any of its scans, or of a scan's intervals, could be missing."""
    with pytest.raises(ImageTruncated, match="before its EOI marker"):
        header(picture("JPEG", 100, 80, **options)[:-2])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("JPEG", "TIFF")])
def test_of_an_animation_the_first_frame_is_taken_when_asked_for(kind: str) -> None:
    assert header(animated(kind), page=1).upright == (16, 16)
    with pytest.raises(PageNotFound, match="page must be at most 1"):
        header(animated(kind), page=2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_still_image_is_its_only_page(kind: str) -> None:
    assert header(WHOLE[kind], page=1) == header(WHOLE[kind])
    with pytest.raises(PageNotFound):
        header(WHOLE[kind], page=2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_in_its_second_half_is_called_truncated(kind: str) -> None:
    data = picture(kind, 200, 200)
    with pytest.raises(ImageTruncated):
        header(data[: len(data) * 3 // 4])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_bytes_after_the_end_do_no_harm(kind: str) -> None:
    assert header(WHOLE[kind] + b"appended by some program").width == 24


def test_a_flipped_bit_in_the_pixels_of_a_png_is_noticed() -> None:
    data = bytearray(WHOLE["PNG"])
    data[data.index(b"IDAT") + 40] ^= 1
    with pytest.raises(ImageError, match="checksum"):
        header(bytes(data))


def test_a_png_without_pixels_is_malformed() -> None:
    start = WHOLE["PNG"][:33]
    with pytest.raises(ImageError, match="no pixels"):
        header(start + png_chunk(b"IEND", b""))


def test_a_png_that_does_not_start_with_its_header_is_malformed() -> None:
    with pytest.raises(ImageError, match="IHDR"):
        header(WHOLE["PNG"][:8] + png_chunk(b"tEXt", bytes(60)) + WHOLE["PNG"][8:])


PIECES = 65_536


def test_a_file_has_no_more_pieces_than_any_program_writes() -> None:
    """Walking millions of them would take seconds."""
    png, chunk = WHOLE["PNG"], png_chunk(b"teXt", b"")
    head, rest = png[:33], png[33:]
    before = sum(png.count(kind) for kind in (b"IHDR", b"IDAT", b"IEND"))
    assert header(head + chunk * (PIECES - before) + rest).width == 24
    with pytest.raises(ImageError, match="65536 chunks"):
        header(head + chunk * (PIECES - before + 1) + rest)
    jpeg, segment = WHOLE["JPEG"], b"\xff\xfe\0\2"
    assert header(jpeg[:2] + segment * 60_000 + jpeg[2:]).width == 24
    for pieces in (segment, b"\xff\1"):
        with pytest.raises(ImageError, match="65536 segments"):
            header(jpeg[:2] + pieces * PIECES + jpeg[2:])
    webp = WHOLE["WEBP"]
    longer = webp[12:] + b"junk\0\0\0\0" * PIECES
    with pytest.raises(ImageError, match="65536 chunks"):
        header(b"RIFF" + struct.pack("<I", 4 + len(longer)) + b"WEBP" + longer)
    if "AVIF" in KINDS:
        with pytest.raises(ImageError, match="65536 boxes"):
            header(WHOLE["AVIF"] + b"\0\0\0\x08free" * PIECES)
    for tag in (258, 279):
        with pytest.raises(ImageError, match=f"tag {tag} has 65537 values"):
            header(tiff_of(b"1", 1, 1, photometric=1, bits=(8,), tags={tag: (8,) * (PIECES + 1)}))


@pytest.mark.parametrize("distance", [0, 1, 60, 200, 300_000])
def test_a_marker_is_found_wherever_it_is(distance: int) -> None:
    jpeg = WHOLE["JPEG"]
    filled = jpeg[:-2] + b"\xff\0" * distance + jpeg[-2:]
    assert header(filled).width == 24
    assert header(jpeg[:-2] + b"\0" * distance + b"\xff" + jpeg[-2:]).width == 24
    assert header(filled[:-2]).lacks_end


def directory_of_tags(count: int, size: int) -> bytes:
    """A directory of so many tags, the values of each being the same `size` bytes."""
    entries = b"".join(
        struct.pack("<HHII", tag, 3, size // 2, 8) for tag in range(1000, 1000 + count)
    )
    orientation = struct.pack("<HHII", 0x0112, 3, 1, 6)
    directory = struct.pack("<H", count + 1) + orientation + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(size)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_tags_that_share_their_bytes_take_no_memory(kind: str) -> None:
    tags = directory_of_tags(800, 1_000_000)
    if kind == "PNG":
        data = WHOLE["PNG"][:33] + png_chunk(b"eXIf", tags) + WHOLE["PNG"][33:]
    elif kind == "WEBP":
        body = WHOLE["WEBP"][12:] + b"EXIF" + struct.pack("<I", len(tags)) + tags
        data = b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
    else:
        data = tags
    tracemalloc.start()
    try:
        if kind == "TIFF":
            with pytest.raises(ImageError):
                header(data)
        else:
            assert header(data).orientation == 6
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2 * len(data)


@given(data=st.data(), kind=st.sampled_from(KINDS))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_damaged_files_are_read_or_refused_and_nothing_else(data: st.DataObject, kind: str) -> None:
    damaged = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(12, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    try:
        found = header(bytes(damaged))
    except ImageError:
        return
    assert found.format == kind


@given(tail=st.binary(max_size=200), kind=st.sampled_from(KINDS))
@example(tail=b"", kind="TIFF")
@settings(max_examples=300, deadline=None)
def test_a_signature_with_noise_behind_it_is_refused(tail: bytes, kind: str) -> None:
    data = WHOLE[kind][:12] + tail
    with pytest.raises(ImageError):
        header(data)
