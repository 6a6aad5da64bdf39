"""Headers are read like Pillow reads them, and a broken file never gets past."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from service.formats import FORMATS, Header, MalformedFile, TruncatedFile, read_header, sniff
from tests.service.pictures import animated, picture, png_chunk

KINDS = sorted(FORMATS)
WHOLE = {kind: picture(kind) for kind in KINDS}


def header(data: bytes) -> Header:
    kind = sniff(data[:32])
    assert kind is not None
    return read_header(kind, data, io.BytesIO(data))


@pytest.mark.parametrize("kind", KINDS)
def test_the_format_is_told_by_the_content(kind: str) -> None:
    assert sniff(WHOLE[kind][:32]) == kind


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG", b"GIF89a" + bytes(40), b"%PDF-1.7 " + bytes(40), b"<svg xmlns='x'/>"]
)
def test_other_content_has_no_format(data: bytes) -> None:
    assert sniff(data[:32]) is None


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
    assert header(animated(kind)).frames > 1


def test_a_second_picture_in_a_jpeg_does_not_count() -> None:
    """Phones append a gain map or a thumbnail (MPO); the first picture is the image."""
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
    with pytest.raises(TruncatedFile):
        header(whole[:-20])


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_is_noticed(kind: str) -> None:
    data = WHOLE[kind]
    for end in range(32, len(data) - 1):
        with pytest.raises(MalformedFile):
            header(data[:end])


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_in_its_second_half_is_called_truncated(kind: str) -> None:
    data = picture(kind, 200, 200)
    with pytest.raises(TruncatedFile):
        header(data[: len(data) * 3 // 4])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_bytes_after_the_end_do_no_harm(kind: str) -> None:
    assert header(WHOLE[kind] + b"appended by some program").width == 24


def test_a_flipped_bit_in_the_pixels_of_a_png_is_noticed() -> None:
    data = bytearray(WHOLE["PNG"])
    data[data.index(b"IDAT") + 40] ^= 1
    with pytest.raises(MalformedFile, match="checksum"):
        header(bytes(data))


def test_a_png_without_pixels_is_malformed() -> None:
    start = WHOLE["PNG"][:33]
    with pytest.raises(MalformedFile, match="no pixels"):
        header(start + png_chunk(b"IEND", b""))


def test_a_png_that_does_not_start_with_its_header_is_malformed() -> None:
    with pytest.raises(MalformedFile, match="IHDR"):
        header(WHOLE["PNG"][:8] + png_chunk(b"tEXt", bytes(60)) + WHOLE["PNG"][8:])


@given(data=st.data(), kind=st.sampled_from(KINDS))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_damaged_files_are_read_or_refused_and_nothing_else(data: st.DataObject, kind: str) -> None:
    damaged = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(12, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    try:
        found = read_header(kind, bytes(damaged), io.BytesIO(damaged))
    except MalformedFile:
        return
    assert found.format == kind


@given(tail=st.binary(max_size=200), kind=st.sampled_from(KINDS))
@example(tail=b"", kind="TIFF")
@settings(max_examples=300, deadline=None)
def test_a_signature_with_noise_behind_it_is_refused(tail: bytes, kind: str) -> None:
    data = WHOLE[kind][:12] + tail
    with pytest.raises(MalformedFile):
        read_header(kind, data, io.BytesIO(data))
