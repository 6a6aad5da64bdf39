"""TIFF directories as scanners, editors and cameras write them."""

from __future__ import annotations

import struct
import sys

import pytest

from jobs.errors import (
    ImageAnimated,
    ImageError,
    ImageTooLarge,
    ImageTruncated,
    PageNotFound,
    UnsupportedFormat,
)
from jobs.formats import examine
from jobs.image_file import ADOBE_RGB
from jobs.tiff import EXIF_PREFIX
from tests.worker.image_files import file_of, gradient, tiff_of
from tests.worker.images.levels import FILES

DIRECTORY_OF = ">HHHI"


@pytest.mark.parametrize("tags", [{50706: (1, 4)}, {254: (1,), 330: (8, 9)}])
def test_a_raw_file_is_not_taken_for_its_preview(tags: dict[int, tuple[int, ...]]) -> None:
    data = tiff_of(bytes(12), 2, 2, photometric=2, bits=(8, 8, 8), tags=tags)
    with pytest.raises(UnsupportedFormat, match=r"raw file.*develop it to TIFF or JPEG"):
        examine(data, sys.maxsize)


def test_layers_of_an_editor_are_no_raw_file() -> None:
    data = tiff_of(bytes(12), 2, 2, photometric=2, bits=(8, 8, 8), tags={330: (8, 9)})
    assert examine(data, sys.maxsize).mode == "RGB"


def test_a_mask_as_second_directory_is_no_page() -> None:
    assert examine((FILES / "mask.tif").read_bytes(), sys.maxsize).frames == 1


def test_pages_are_called_pages() -> None:
    from PIL import Image

    image = Image.fromarray(gradient())
    data = file_of(image, "TIFF", save_all=True, append_images=[image])
    with pytest.raises(ImageAnimated, match="has 2 pages; page, of 1 to 2, says which"):
        examine(data, sys.maxsize)


def pages_of(*sizes: tuple[int, int], previews: tuple[int, ...] = ()) -> bytes:
    """Pages of these sizes, of which those at some places are called previews."""
    from PIL import Image

    images = [Image.new("L", size) for size in sizes]
    for place, image in enumerate(images):
        image.encoderinfo = {"tiffinfo": {254: int(place in previews)}}
    return file_of(images[0], "TIFF", save_all=True, append_images=images[1:])


def test_a_page_has_its_own_size_and_previews_do_not_count() -> None:
    data = pages_of((16, 12), (4, 3), (20, 10), previews=(1,))
    found = examine(data, 300, page=2)
    assert (found.upright, found.frames, found.directory) == ((20, 10), 2, 2)
    with pytest.raises(ImageTooLarge, match="20 x 10"):
        examine(data, 192, page=2)
    assert examine(data, 192, page=1).upright == (16, 12)


@pytest.mark.parametrize(("pages", "page"), [(1, 2), (3, 4), (3, 65_535)])
def test_a_page_that_is_not_there_is_refused_with_how_many_there_are(pages: int, page: int) -> None:
    with pytest.raises(PageNotFound, match=f"page must be at most {pages} .*got {page}") as error:
        examine(pages_of(*[(8, 8)] * pages), sys.maxsize, page=page)
    assert error.value.extra["errors"] == [
        {"field": "page", "detail": error.value.detail[5:-1], "maximum": pages}
    ]


def test_directories_that_go_round_are_refused() -> None:
    data = bytearray(pages_of((8, 8)))
    start = struct.unpack_from("<I", data, 4)[0]
    behind = start + 2 + 12 * struct.unpack_from("<H", data, start)[0]
    struct.pack_into("<I", data, behind, start)
    with pytest.raises(ImageError, match="more than 65536 tags"):
        examine(bytes(data), sys.maxsize, page=9)


def test_the_length_of_an_only_strip_may_be_left_out() -> None:
    data = (FILES / "no-bytecounts.tif").read_bytes()
    assert examine(data, sys.maxsize).upright == (64, 48)
    with pytest.raises(ImageTruncated, match="its pixels go on behind its end"):
        examine(data[:-1], sys.maxsize)


def test_a_file_that_says_nothing_of_its_pixels_is_refused() -> None:
    data = tiff_of(bytes(12), 2, 2, photometric=2, bits=(8, 8, 8))
    # The tag of the offsets becomes an unknown one.
    at = data.index(struct.pack("<HH", 273, 4))
    broken = data[:at] + struct.pack("<H", 272) + data[at + 2 :]
    with pytest.raises(ImageError, match="does not say where its pixels are"):
        examine(broken, sys.maxsize)


@pytest.mark.parametrize(
    ("bits", "format", "words"),
    [
        ((32, 32, 32), 1, "whole numbers of 32 bits"),
        ((32, 32, 32), 3, "floating-point numbers of 32 bits"),
        ((16, 16, 16), 2, "signed numbers of 16 bits"),
        ((8, 16, 8), 1, "whole numbers of 8 and 16 bits"),
    ],
)
def test_channels_that_are_not_read_are_named_in_words(
    bits: tuple[int, ...], format: int, words: str
) -> None:
    tags = {339: (format,) * 3}
    data = tiff_of(bytes(64), 2, 2, photometric=2, bits=bits, tags=tags)
    with pytest.raises(UnsupportedFormat, match=words):
        examine(data, sys.maxsize)


def adobe_exif(index: bytes) -> bytes:
    """An EXIF block whose interoperability index is this, as a camera's."""
    first = struct.pack(">HHHII", 1, 34665, 4, 1, 26)
    exif = struct.pack(">HHHII", 1, 40965, 4, 1, 44)
    interoperability = struct.pack(">HHHI4s", 1, 1, 2, 4, index)
    parts = b"".join(part + bytes(4) for part in (first, exif, interoperability))
    return EXIF_PREFIX + b"MM\0*" + struct.pack(">I", 8) + parts


def test_adobe_rgb_is_told_by_exif_alone() -> None:
    from PIL import Image

    image = Image.fromarray(gradient())
    for index, colours in ((b"R03\0", ADOBE_RGB), (b"R98\0", None)):
        data = file_of(image, "JPEG", exif=adobe_exif(index))
        assert examine(data, sys.maxsize).colours == colours
