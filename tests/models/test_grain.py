"""Noise where an image has texture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models import grain
from models.color import join_rows
from models.grain import add_grain
from tests.models import narrow


def texture(height: int = 200, width: int = 160) -> Tensor:
    """A flat left half, texture on the right: (1, 3, height, width) in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    image = F.avg_pool2d(torch.rand((1, 3, height, width), generator=generator) - 0.5, 5, 1, 2)
    image[..., : width // 2] = 0
    return image


def grain_of(image: Tensor, seed: int = 0, strength: float = 0.6) -> Tensor:
    """What is added."""
    result = image.clone()
    add_grain(result, strength, seed)
    return result - image


def test_texture_gets_grain_and_a_flat_area_none_up_to_the_edge() -> None:
    noise = grain_of(texture())
    assert noise[..., :78].abs().max() < 1e-6
    assert noise[..., 110:].std() > 0.5 / 127.5


def test_an_edge_between_two_flat_areas_gets_none() -> None:
    image = torch.zeros((1, 3, 100, 100))
    image[..., 50:] = 1
    assert grain_of(image).abs().max() < 1e-6


def test_grain_is_never_more_than_a_few_levels() -> None:
    loud = texture() * 20
    assert grain_of(loud).std() < 4 / 127.5


def test_all_channels_get_the_same() -> None:
    noise = grain_of(texture())
    torch.testing.assert_close(noise[:, 0], noise[:, 2])


def test_a_seed_gives_the_same_grain_and_another_seed_another() -> None:
    image = texture()
    assert torch.equal(grain_of(image, seed=7), grain_of(image, seed=7))
    assert not torch.equal(grain_of(image, seed=7), grain_of(image, seed=2**32 - 1))


@pytest.mark.parametrize("rows", [7, 64])
def test_the_number_of_rows_at_once_changes_nothing(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = grain_of(texture())
    monkeypatch.setattr(grain, "_STRIP_ROWS", rows)
    monkeypatch.setattr(grain, "_STRIP_PIXELS", 1)
    assert torch.equal(grain_of(texture()), whole)


def test_no_strength_and_an_image_too_small_for_contrast_stay_as_they_are() -> None:
    assert torch.equal(grain_of(texture(), strength=0.0), torch.zeros_like(texture()))
    assert not grain_of(texture(8, 40)).any()


def test_an_image_gets_the_grain_of_its_seed_and_less_of_it_the_higher_its_weight() -> None:
    model = narrow.pipeline()
    config = model.networks.config
    image = torch.rand((1, 3, 32, 32), generator=torch.Generator().manual_seed(0))

    def results(strength: float, weight: float) -> list[Tensor]:
        model.networks.config = replace(config, grain=strength)
        options = narrow.parameters(steps=1, fidelity_weight=weight, color_fix="none")
        return [join_rows(rows, (128, 128)) for rows in model.upscale_rows(image, options, [3, 9])]

    def added(weight: float) -> list[Tensor]:
        pairs = zip(results(0.7, weight), results(0.0, weight), strict=True)
        return [grained - plain for grained, plain in pairs]

    first, second = added(0.0)
    assert first.std() > 1e-4
    assert not torch.equal(first, second)
    assert added(0.5)[0].std() < 0.9 * first.std()
    assert not added(1.0)[0].any()
