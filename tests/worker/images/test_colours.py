"""Colours that no ICC profile describes, as other decoders show them."""

from __future__ import annotations

import struct
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.errors import ImageTruncated, UnsupportedFormat
from jobs.formats import examine
from jobs.image_file import SRGB, Colours, colours_of_cicp
from tests.service.pictures import png_chunk
from tests.worker.image_files import file_of, gradient
from tests.worker.images.levels import FILES, levels
from worker.images import DecodedImage, decode
from worker.images.colours import full_range, to_srgb, unpremultiply

LIMIT = 1_000_000


def of_file(name: str) -> DecodedImage:
    return decode((FILES / name).read_bytes(), LIMIT)


def middle(image: DecodedImage) -> list[float]:
    width, height = image.size
    return [float(level) * 255 for level in image.rgb[0, :, height // 2, width // 2]]


@pytest.mark.parametrize(
    ("name", "colour"),
    [
        ("premultiplied.avif", (200, 120, 60)),
        ("p3.avif", (210, 88, 75)),
        ("p3.png", (210, 88, 75)),
        ("gamma.png", (128, 128, 128)),
        ("clap.avif", (20, 40, 200)),
    ],
)
def test_a_file_has_the_colour_that_its_writer_meant(name: str, colour: tuple[int, ...]) -> None:
    assert np.abs(np.subtract(middle(of_file(name)), colour)).max() < 6


def test_a_clean_aperture_is_the_image() -> None:
    assert of_file("clap.avif").size == (32, 32)


def test_grey_of_narrow_range_reaches_from_black_to_white() -> None:
    image = of_file("grey-limited.avif")
    assert image.grey
    assert (float(image.rgb.min()), float(image.rgb.max())) == pytest.approx((0, 1), abs=1e-6)


def test_grey_with_opacity_stays_grey() -> None:
    image = of_file("grey-alpha.avif")
    assert image.grey
    assert image.channels == 2


def test_damage_in_the_last_rows_of_a_jpeg_is_damage() -> None:
    with pytest.raises(ImageTruncated, match="premature end of data segment"):
        of_file("damaged.jpg")


def test_of_two_exif_blocks_the_first_counts() -> None:
    assert of_file("two-exif.jpg").size == (64, 48)


def test_a_png_without_its_empty_last_chunk_is_whole() -> None:
    assert of_file("no-iend.png").size == (64, 48)
    data = (FILES / "no-iend.png").read_bytes()
    with pytest.raises(ImageTruncated):
        decode(data[:-1], LIMIT)


def test_a_height_behind_the_pixels_is_said_to_be_so() -> None:
    with pytest.raises(UnsupportedFormat, match=r"behind its pixels \(DNL\)"):
        of_file("dnl.jpg")


def test_hdr_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedFormat, match=r"it is HDR \(PQ\)"):
        of_file("pq.png")
    with pytest.raises(UnsupportedFormat, match=r"it is HDR \(HLG\)"):
        colours_of_cicp("AVIF", 9, 18)


def labelled(pixels: Image.Image, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with these chunks behind its first."""
    data = file_of(pixels)
    return data[:33] + b"".join(png_chunk(kind, body) for kind, body in chunks) + data[33:]


GAMMA = (b"gAMA", struct.pack(">I", 100_000))
SRGB_CHUNK = (b"sRGB", b"\0")
P3 = (b"cICP", bytes((12, 13, 0, 1)))
BT2020 = (b"cHRM", struct.pack(">8I", 31270, 32900, 70800, 29200, 17000, 79700, 13100, 4600))
OLD_SRGB = (b"gAMA", struct.pack(">I", 45455))
OLD_PRIMARIES = (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))


@pytest.mark.parametrize(
    ("chunks", "colours"),
    [
        ([], None),
        ([GAMMA], Colours(SRGB.primaries, 1.0)),
        ([SRGB_CHUNK, GAMMA], None),
        ([P3, SRGB_CHUNK], colours_of_cicp("PNG", 12, 13)),
        ([OLD_SRGB, OLD_PRIMARIES], None),
        ([OLD_SRGB], None),
        ([BT2020], Colours(colours_of_cicp("PNG", 9, 13).primaries)),
        ([P3, GAMMA], colours_of_cicp("PNG", 12, 13)),
    ],
)
def test_of_a_pngs_labels_the_strongest_counts(
    chunks: list[tuple[bytes, bytes]], colours: Colours | None
) -> None:
    data = labelled(Image.fromarray(gradient()), *chunks)
    assert examine(data, sys.maxsize).colours == colours


def test_a_cicp_chunk_counts_more_than_an_icc_profile() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.new("RGB", (8, 8), (195, 96, 81))
    data = file_of(image, icc_profile=profile)
    plain = decode(data, LIMIT)
    told = decode(data[:33] + png_chunk(*P3) + data[33:], LIMIT)
    assert middle(plain) == pytest.approx((195, 96, 81), abs=0.6)
    assert middle(told) == pytest.approx((210, 89, 75), abs=1)


@pytest.mark.parametrize("primaries", [4, 5, 6, 7, 9, 11, 12, 22])
def test_white_and_black_stay_in_all_primaries(primaries: int) -> None:
    planes = torch.tensor([[0.0, 1.0]]).expand(3, 1, 2)[None]
    srgb = to_srgb(planes, colours_of_cicp("PNG", primaries, 13))
    assert torch.allclose(srgb, planes, atol=2e-3)


def test_srgb_itself_stays_as_it_is() -> None:
    planes = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(to_srgb(planes, SRGB), planes, atol=1e-6)


def test_grey_follows_the_curve_alone() -> None:
    grey = to_srgb(torch.full((1, 1, 1, 1), 0.2140), Colours(SRGB.primaries, 1.0))
    assert float(grey) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(("depth", "black", "white"), [(10, 64, 940), (12, 256, 3760)])
def test_narrow_levels_of_10_and_12_bits_are_spread_to_16(
    depth: int, black: int, white: int
) -> None:
    stored = (np.array([[[black], [white]]]) << (16 - depth)).astype(np.uint16)
    assert full_range(stored, depth, narrow=True).ravel().tolist() == [0, 65535]


def test_full_levels_of_8_bits_stay_the_same_array() -> None:
    stored = gradient()
    assert full_range(stored, 8, narrow=False) is stored


def test_colours_are_divided_by_their_opacity_where_there_is_any() -> None:
    stored = np.array([[[50, 30, 15, 64], [7, 7, 7, 0], [9, 8, 7, 255]]], np.uint8)
    expected = [[[199, 120, 60, 64], [7, 7, 7, 0], [9, 8, 7, 255]]]
    assert unpremultiply(stored, 3).tolist() == expected


def test_an_opacity_behind_an_editors_mask_is_taken() -> None:
    from tests.worker.image_files import tiff_of

    pixels = np.array([[9, 8, 7, 1, 200]], np.uint8)
    tags = {338: (0, 2)}
    data = tiff_of(pixels.tobytes(), 1, 1, photometric=2, bits=(8,) * 5, tags=tags)
    image = decode(data, LIMIT)
    assert levels(image).tolist() == [[[9, 8, 7]]]
    assert image.alpha is not None
    assert float(image.alpha) == pytest.approx(200 / 255)
