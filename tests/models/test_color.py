"""The input enlarged; the result corrected and made smaller row by row, as the whole would be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from models.checkpoints.folder import random_networks
from models.color import correct_rows, enlarge, reduce_rows, wavelet
from models.errors import InvalidOption
from models.memory import MemoryBudget
from models.pipeline import StableSR
from models.presets import ColorFix
from tests.models import narrow


def adain(image: Tensor, reference: Tensor) -> Tensor:
    """Equation 7 on whole images."""
    normal = (image - image.mean((2, 3), True)) / deviation(image)
    return normal * deviation(reference) + reference.mean((2, 3), True)


def deviation(image: Tensor) -> Tensor:
    return (image.var((2, 3), keepdim=True) + 1e-5).sqrt()


def correct(image: Tensor, reference: Tensor, fix: ColorFix) -> Tensor:
    """The correction of whole images."""
    if fix == "none":
        return image
    return adain(image, reference) if fix == "adain" else wavelet(image, reference)


def test_adain_gives_each_channel_the_references_mean_and_deviation() -> None:
    image, reference = torch.rand(1, 3, 40, 30), torch.rand(1, 3, 40, 30) * 0.3 + 0.5
    [result] = correct_rows(image, reference, "adain", 40)
    torch.testing.assert_close(result.mean((2, 3)), reference.mean((2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(result.std((2, 3)), reference.std((2, 3)), rtol=1e-3, atol=0)


def test_wavelet_leaves_an_image_that_is_its_own_reference() -> None:
    image = torch.rand(1, 3, 50, 70)
    torch.testing.assert_close(wavelet(image, image), image)


def test_wavelet_moves_a_cast_to_the_references_color_and_keeps_detail() -> None:
    image = torch.rand(1, 3, 64, 64)
    cast = image + torch.tensor([0.2, -0.1, 0.05]).view(1, 3, 1, 1)
    torch.testing.assert_close(wavelet(cast, image), image, rtol=0, atol=1e-5)


def test_an_unknown_correction_is_refused_by_name() -> None:
    image = torch.rand(1, 3, 8, 8)
    with pytest.raises(InvalidOption, match=r"'sepia'.*adain, wavelet, none"):
        list(correct_rows(image, image, "sepia", 8))  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("fix", ["adain", "wavelet", "none"])
@pytest.mark.parametrize(("height", "rows"), [(64, 64), (130, 32), (77, 5), (9, 100)])
def test_rows_are_those_of_the_whole_corrected_image(fix: ColorFix, height: int, rows: int) -> None:
    image, reference = torch.rand(1, 3, height, 40) * 2 - 1, torch.rand(1, 3, height, 40) * 0.3
    strips = list(correct_rows(image, reference, fix, rows))
    assert [strip.shape[2] for strip in strips[:-1]] == [rows] * (len(strips) - 1)
    whole = correct(image, reference, fix)
    torch.testing.assert_close(torch.cat(strips, dim=2), whole, rtol=0, atol=1e-6)


def test_the_compact_fusion_keeps_its_colours_and_what_is_sampled_gets_the_inputs() -> None:
    cpu, dtype = torch.device("cpu"), torch.float32
    networks = random_networks(narrow.WITH_COMPACT, cpu, dtype)
    sr = StableSR(networks, narrow.PRESET, cpu, dtype, MemoryBudget())
    image = torch.rand((1, 3, 24, 24), generator=torch.Generator().manual_seed(0))

    def change(weight: float) -> Tensor:
        results = [
            sr.upscale(image, narrow.parameters(fidelity_weight=weight, color_fix=fix))
            for fix in ("adain", "none")
        ]
        return (results[0] - results[1]).abs().mean()

    assert change(1.0) == 0
    assert 0 < change(0.5) < change(0.0)


def test_an_image_of_one_colour_is_corrected_like_any_other() -> None:
    image, reference = torch.full((1, 3, 8, 8), 0.25), torch.full((1, 3, 8, 8), -0.5)
    [strip] = correct_rows(image, reference, "adain", 8)
    torch.testing.assert_close(strip, reference)


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
    expected = F.pad(whole, padding, mode="reflect")
    torch.testing.assert_close(enlarge(image, canvas, padded), expected, rtol=0, atol=1e-6)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 400), st.integers(2, 90), st.integers(5, 200), st.data())
def test_reducing_by_rows_is_reducing_the_whole(
    height: int, width: int, rows: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, height)), data.draw(st.integers(2, width))
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(height))
    expected = F.interpolate(image[None], size=size, mode="bicubic", antialias=True)[0]
    result = torch.cat(list(reduce_rows(torch.split(image, rows, dim=1), height, size)), dim=1)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [7, 53])
def test_a_result_one_pixel_wide_is_right_too(rows: int) -> None:
    """torch's own antialiased interpolation repeats the first row there."""
    column = torch.rand(3, 53, 1)
    wide = column.expand(3, 53, 2).contiguous()
    expected = F.interpolate(wide[None], size=(18, 2), mode="bicubic", antialias=True)[0, :, :, :1]
    result = torch.cat(list(reduce_rows(torch.split(column, rows, dim=1), 53, (18, 1))), dim=1)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


def test_only_rows_under_the_filter_are_held() -> None:
    heights: list[int] = []
    strips = (torch.rand(3, 16, 20) for _ in range(100))
    for strip in reduce_rows(strips, 1600, (400, 10)):
        heights.append(strip.shape[1])
    assert sum(heights) == 400
    assert max(heights) <= 8
