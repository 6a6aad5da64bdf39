"""JPEG files with a blemish are read, pixel for pixel; those with pixels missing are not."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.errors import ImageTruncated
from tests.worker.image_files import file_of
from worker.images import decode
from worker.images.decoding import without_blemishes

LIMIT = 1_000_000
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
