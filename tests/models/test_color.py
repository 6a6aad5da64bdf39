"""Colour correction."""

from __future__ import annotations

import pytest
import torch

from models.color import adain, correct_color, corrected_rows, wavelet
from models.errors import InvalidOption
from models.parameters import ColorFix


def test_adain_gives_each_channel_the_references_mean_and_deviation() -> None:
    image, reference = torch.rand(1, 3, 40, 30), torch.rand(1, 3, 40, 30) * 0.3 + 0.5
    fixed = adain(image, reference)
    torch.testing.assert_close(fixed.mean((2, 3)), reference.mean((2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(fixed.std((2, 3)), reference.std((2, 3)), rtol=1e-3, atol=0)


def test_wavelet_leaves_an_image_that_is_its_own_reference() -> None:
    image = torch.rand(1, 3, 50, 70)
    torch.testing.assert_close(wavelet(image, image), image)


def test_wavelet_moves_a_cast_to_the_references_color_and_keeps_detail() -> None:
    image = torch.rand(1, 3, 64, 64)
    cast = image + torch.tensor([0.2, -0.1, 0.05]).view(1, 3, 1, 1)
    torch.testing.assert_close(wavelet(cast, image), image, rtol=0, atol=1e-5)


def test_none_changes_nothing() -> None:
    image = torch.rand(1, 3, 8, 8)
    assert correct_color(image, torch.rand(1, 3, 8, 8), "none") is image


def test_an_unknown_correction_is_refused_by_name() -> None:
    image = torch.rand(1, 3, 8, 8)
    with pytest.raises(InvalidOption, match=r"'sepia'.*adain, wavelet, none"):
        correct_color(image, image, "sepia")  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("fix", ["adain", "wavelet", "none"])
@pytest.mark.parametrize(("height", "rows"), [(64, 64), (130, 32), (77, 5), (9, 100)])
def test_rows_are_those_of_the_whole_corrected_image(fix: ColorFix, height: int, rows: int) -> None:
    image, reference = torch.rand(1, 3, height, 40) * 2 - 1, torch.rand(1, 3, height, 40) * 0.3
    strips = list(corrected_rows(image, reference, fix, rows))
    assert [strip.shape[2] for strip in strips[:-1]] == [rows] * (len(strips) - 1)
    whole = correct_color(image, reference, fix)
    torch.testing.assert_close(torch.cat(strips, dim=2), whole, rtol=0, atol=1e-6)


def test_a_picture_of_one_colour_is_corrected_like_any_other() -> None:
    image, reference = torch.full((1, 3, 8, 8), 0.25), torch.full((1, 3, 8, 8), -0.5)
    [strip] = corrected_rows(image, reference, "adain", 8)
    torch.testing.assert_close(strip, reference)
