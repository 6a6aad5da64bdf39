"""Made larger, padded, and made smaller row by row, as the whole image would be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from models.resize import reduced_rows, upsampled


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_the_canvas_is_the_interpolated_image_reflected(
    height: int, width: int, data: st.DataObject
) -> None:
    canvas = data.draw(st.integers(16, 70)), data.draw(st.integers(16, 70))
    padded = canvas[0] + data.draw(st.integers(0, 7)), canvas[1] + data.draw(st.integers(0, 7))
    image = torch.rand(1, 3, height, width)
    whole = F.interpolate(image, size=canvas, mode="bicubic").clamp(0, 1) * 2 - 1
    padding = (0, padded[1] - canvas[1], 0, padded[0] - canvas[0])
    wanted = F.pad(whole, padding, mode="reflect")
    torch.testing.assert_close(upsampled(image, canvas, padded), wanted, rtol=0, atol=1e-6)


def test_padding_longer_than_the_canvas_goes_back_and_forth() -> None:
    row = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3).expand(1, 3, 3, 3)
    assert upsampled(row, (3, 3), (3, 9))[0, 0, 0].tolist() == [-1, 0, 1, 0, -1, 0, 1, 0, -1]
    assert upsampled(row[..., :1], (3, 1), (3, 4))[0, 0, 0].tolist() == [-1] * 4


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 400), st.integers(2, 90), st.integers(5, 200), st.data())
def test_reducing_by_rows_is_reducing_the_whole(
    height: int, width: int, rows: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, height)), data.draw(st.integers(2, width))
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(height))
    wanted = F.interpolate(image[None], size=size, mode="bicubic", antialias=True)[0]
    found = torch.cat(list(reduced_rows(torch.split(image, rows, dim=1), height, size)), dim=1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [7, 53])
def test_a_result_one_pixel_wide_is_right_too(rows: int) -> None:
    """torch's own antialiased interpolation repeats the first row there."""
    column = torch.rand(3, 53, 1)
    wide = column.expand(3, 53, 2).contiguous()
    wanted = F.interpolate(wide[None], size=(18, 2), mode="bicubic", antialias=True)[0, :, :, :1]
    found = torch.cat(list(reduced_rows(torch.split(column, rows, dim=1), 53, (18, 1))), dim=1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_only_rows_under_the_filter_are_held() -> None:
    held: list[int] = []
    strips = (torch.rand(3, 16, 20) for _ in range(100))
    for strip in reduced_rows(strips, 1600, (400, 10)):
        held.append(strip.shape[1])
    assert sum(held) == 400
    assert max(held) <= 8
