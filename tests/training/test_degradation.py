"""The second-order degradation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from training.degradation import (
    MILD,
    PAPER,
    DegradationSettings,
    RoundSettings,
    degrade,
)

PHOTOGRAPHS = Path(__file__).parents[1] / "photographs"


def photograph(name: str, side: int) -> Tensor:
    with Image.open(PHOTOGRAPHS / f"{name}.webp") as file:
        pixels = np.array(file.convert("RGB").crop((0, 0, side, side)))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * (a - b).square().mean().log10())


@pytest.mark.parametrize("settings", [PAPER, MILD])
def test_a_degraded_batch_is_a_quarter_of_the_size_on_eight_bit_levels(
    settings: DegradationSettings,
) -> None:
    hr = torch.cat([photograph("petra", 192), photograph("kitten", 192)])[..., :128]
    lr = degrade(hr, generator=generator(1), settings=settings)
    assert lr.shape == (2, 3, 48, 32)
    assert lr.dtype == torch.float32
    assert 0 <= float(lr.min()) <= float(lr.max()) <= 1
    torch.testing.assert_close((lr * 255).round() / 255, lr, rtol=0, atol=1e-7)


def test_the_same_seed_gives_the_same_images_and_another_seed_others() -> None:
    hr = photograph("petra", 128)
    first = degrade(hr, generator=generator(5))
    assert torch.equal(first, degrade(hr, generator=generator(5)))
    assert not torch.equal(first, degrade(hr, generator=generator(6)))


def test_every_image_of_a_batch_draws_its_own_parameters() -> None:
    hr = photograph("petra", 128).expand(3, -1, -1, -1)
    lr = degrade(hr, generator=generator(2))
    assert not torch.equal(lr[0], lr[1])
    assert not torch.equal(lr[1], lr[2])


def test_a_degraded_photograph_still_shows_the_photograph_but_worse_than_plain_reduction() -> None:
    hr = photograph("berlinCathedral", 256).expand(12, -1, -1, -1)
    plain = torch.nn.functional.interpolate(hr, scale_factor=0.25, mode="area")
    values = {}
    for name, settings in (("paper", PAPER), ("mild", MILD)):
        lr = degrade(hr, generator=generator(3), settings=settings)
        values[name] = sum(psnr(a, b) for a, b in zip(lr, plain, strict=True)) / len(hr)
    assert 14 < values["paper"] < values["mild"] < 35


def test_with_everything_off_a_flat_image_comes_back_unchanged() -> None:
    still = RoundSettings(
        blur=0,
        resize=(0, 0, 1),
        gaussian=1,
        gaussian_sigma=(1e-6, 1e-6),
        jpeg_quality=(100, 100),
    )
    flat = torch.full((1, 3, 64, 64), 120 / 255)
    lr = degrade(flat, generator=generator(0), settings=DegradationSettings(still, still, 0))
    torch.testing.assert_close(lr, flat[..., :16, :16])


@pytest.mark.parametrize("seed", range(8))
def test_blur_spreads_a_point_but_leaves_it_where_it_is(seed: int) -> None:
    blurring = RoundSettings(
        sinc=0,
        blur_sigma=(1.2, 1.2),
        resize=(0, 0, 1),
        gaussian=1,
        gaussian_sigma=(1e-6, 1e-6),
        jpeg_quality=(100, 100),
    )
    point = torch.zeros(1, 3, 48, 64)
    point[..., 20, 31] = 1
    settings = DegradationSettings(blurring, replace(blurring, blur=0), 0)
    seen = degrade(point, 1, generator=generator(seed), settings=settings)[0].mean(0)
    assert float(seen.max()) < 0.7
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    bright = torch.where(seen > 4 / 255, seen, torch.zeros(()))  # without JPEG's ripples
    assert abs(float((bright * y).sum() / bright.sum()) - 20) < 0.15
    assert abs(float((bright * x).sum() / bright.sum()) - 31) < 0.15


@pytest.mark.parametrize("gaussian", [0.0, 1.0])
def test_grey_noise_is_the_same_in_the_three_channels(gaussian: float) -> None:
    noisy = RoundSettings(
        blur=0,
        resize=(0, 0, 1),
        gaussian=gaussian,
        gaussian_sigma=(10, 10),
        poisson_scale=(1, 1),
        grey=1,
        jpeg_quality=(100, 100),
    )
    flat = torch.full((1, 3, 64, 64), 128 / 255)
    lr = degrade(flat, 1, generator=generator(0), settings=DegradationSettings(noisy, noisy, 0))
    assert float(lr.std()) > 5 / 255
    assert float((lr[:, 0] - lr[:, 1]).abs().max()) < 3 / 255  # JPEG's rounding at most


def test_a_size_that_the_scale_does_not_divide_is_refused_with_the_size() -> None:
    with pytest.raises(ValueError, match="66 x 64"):
        degrade(torch.zeros(1, 3, 64, 66), generator=generator(0))
    with pytest.raises(ValueError, match=r"\(1, 1, 64, 64\)"):
        degrade(torch.zeros(1, 1, 64, 64), generator=generator(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blur": 1.2}, "less than or equal to 1 .*1.2"),
        ({"resize": (0.5, -0.5, 0.5)}, "greater than or equal to 0 .*-0.5"),
        ({"resize_range": (1.2, 1.5)}, "less than or equal to 1 .*1.2"),
        ({"jpeg_quality": (0.0, 50.0)}, "greater than or equal to 1 .*0.0"),
        ({"blur_sigma": (1.0, 0.5)}, "must rise"),
    ],
)
def test_settings_outside_their_range_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RoundSettings(), **change)  # type: ignore[arg-type]  # wrong values on purpose
