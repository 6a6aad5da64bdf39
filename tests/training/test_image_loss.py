"""Pixel and adversarial terms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from evaluation.metrics import ssim
from models.networks.autoencoder import Autoencoder
from tests.models.narrow import AUTOENCODER
from tests.training.small_run import CPU
from training.config import ImageLossSettings
from training.image_loss import (
    ImageLoss,
    PatchCritic,
    adaptive_weight,
    gradient_loss,
    lattice_loss,
    phase_loss,
    psnr_loss,
    ssim_loss,
)


def image(seed: int, side: int = 64) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(AUTOENCODER).requires_grad_(False)


def test_the_critic_learns_to_tell_two_kinds_of_images_apart() -> None:
    torch.manual_seed(0)
    critic = PatchCritic(4)
    optimizer = torch.optim.AdamW(critic.parameters(), 2e-3)
    first = last = 0.0
    for step in range(25):
        real, fake = image(step), image(100 + step) * 0.2
        loss = ImageLoss.critic_term(critic, fake, real)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch declares no types here
        optimizer.step()
        first, last = first or float(loss.detach()), float(loss.detach())
    assert last < first / 2
    with torch.no_grad():
        assert critic(image(0) * 0.2).mean() < critic(image(0)).mean()


def test_the_adaptive_weight_balances_the_gradients_at_the_last_layer() -> None:
    layer = nn.Linear(3, 1, bias=False)
    out = layer(torch.ones(1, 3)).sum()
    weight = adaptive_weight(6 * out, 2 * out, list(layer.parameters()))
    assert float(weight) == pytest.approx(3, rel=1e-3)
    assert not weight.requires_grad


def test_terms_are_weighted_and_those_without_weight_are_left_out() -> None:
    settings = ImageLossSettings(l1=2, gradient=0.5, phase=3)
    terms = ImageLoss(settings, autoencoder(), seed=0, device=CPU).terms(image(0), image(1), 0)
    assert set(terms) == {"l1", "gradient", "phase"}
    torch.testing.assert_close(terms["l1"], 2 * (image(0) - image(1)).abs().mean())
    torch.testing.assert_close(terms["phase"], 3 * phase_loss(image(0) - image(1)))
    torch.testing.assert_close(terms["gradient"], 0.5 * gradient_loss(image(0), image(1)))


def test_smooth_images_count_as_much_as_others_for_psnr() -> None:
    target = image(0)
    error = torch.tensor([0.4, 0.8]).view(2, 1, 1, 1) * target.sign()

    def gain(first: float, second: float) -> float:
        better = error * torch.tensor([first, second]).view(2, 1, 1, 1)
        return float(psnr_loss(target + error, target) - psnr_loss(target + better, target))

    # Half of the error is six decibels more, whatever it was.
    assert gain(0.5, 1) == pytest.approx(gain(1, 0.5), rel=0.1)
    assert psnr_loss(target, target) < psnr_loss(target + error, target)


def test_ssim_is_what_the_evaluation_scores() -> None:
    clean = image(0)[:1]
    images = clean, (clean + 0.5 * image(1)[:1]).clamp(-1, 1)
    ours, theirs = (((i[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy() for i in images)
    assert 1 - float(ssim_loss(*images)) == pytest.approx(ssim(ours, theirs, 0), abs=1e-4)
    assert float(ssim_loss(images[0], images[0])) == pytest.approx(0, abs=1e-6)


def test_ssim_of_smooth_images_is_the_same_under_autocast() -> None:
    smooth = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    noisy = smooth + 0.01 * image(0)[:1]
    loss = ssim_loss(smooth, noisy)
    assert loss > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert ssim_loss(smooth, noisy) == loss


def test_an_error_that_is_the_same_everywhere_has_no_phase_and_a_lattice_has() -> None:
    shift = torch.tensor([0.3, -0.1, 0.2]).view(1, 3, 1, 1).expand(2, 3, 16, 24)
    assert float(phase_loss(shift)) == pytest.approx(0, abs=1e-7)
    lattice = shift.clone()
    lattice[:, :, 5::8, 2::8] += 0.64
    # One place of 64 is 0.63 too bright then, and each of the others 0.01 too dark.
    assert float(phase_loss(lattice)) == pytest.approx(2 * 63 * 0.01 / 64, rel=1e-4)


def test_what_differs_from_cell_to_cell_has_no_phase() -> None:
    cells = torch.randn(1, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    blocks = cells.repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert float(phase_loss(blocks)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("period", "way"), [(2, 2), (4, 2), (8, 2), (4, 3)])
def test_a_lattice_stands_out_of_the_spectrum_and_grain_does_not(period: int, way: int) -> None:
    grain = torch.randn(2, 3, 192, 128, generator=torch.Generator().manual_seed(0)) / 20
    places = torch.arange(grain.shape[way]) % period == 0
    lattice = places.float().view(-1, 1) if way == 2 else places.float().view(1, -1)
    assert float(lattice_loss(grain)) < 0.01
    faint, strong = (float(lattice_loss(grain + height * lattice)) for height in (0.02, 0.1))
    assert 0.03 < faint < strong


def test_the_lattice_of_a_smooth_image_is_found_beside_a_loud_one() -> None:
    grain = torch.randn(2, 3, 192, 128, generator=torch.Generator().manual_seed(0)) / 20
    smooth, loud = grain[:1] + 0.04 * (torch.arange(128) % 4 == 0), 20 * grain[1:]
    both = float(lattice_loss(torch.cat([smooth, loud])))
    assert both > 0.4 * float(lattice_loss(smooth)) > 0.01


def test_a_step_decides_which_part_is_compared_perceptually() -> None:
    settings = ImageLossSettings(l1=1, perceptual=1, perceptual_side=24)
    loss = ImageLoss(settings, autoencoder(), seed=0, device=CPU)
    terms = [loss.terms(image(0), image(1), step) for step in (0, 1, 0)]
    assert float(terms[0]["perceptual"]) == float(terms[2]["perceptual"])
    assert float(terms[0]["perceptual"]) != float(terms[1]["perceptual"])
    assert float(terms[0]["l1"]) == float(terms[1]["l1"])


def test_a_part_larger_than_the_image_is_the_image() -> None:
    whole, part = (
        ImageLoss(
            ImageLossSettings(l1=0, perceptual=1, perceptual_side=side),
            autoencoder(),
            seed=0,
            device=CPU,
        ).terms(image(0), image(1), 0)
        for side in (None, 96)
    )
    assert torch.equal(whole["perceptual"], part["perceptual"])
